//! Reads the maps of files that had to be transformed, so that stacks can be told in the tenant's own lines.

/// The map of one emitted file.
pub struct SourceMap(swc_sourcemap::SourceMap);

impl SourceMap {
    /// `None`: the text is not a source map.
    pub fn parse(json: &str) -> Option<Self> {
        swc_sourcemap::SourceMap::from_slice(json.as_bytes()).ok().map(Self)
    }

    /// Where a place in the emitted file came from. All numbers count from 1.
    pub fn lookup(&self, line: u32, column: u32) -> Option<(u32, u32)> {
        let line = line.checked_sub(1)?;
        let token = self.0.lookup_token(line, column.checked_sub(1)?)?;
        let same_line = token.get_dst_line() == line && token.get_src_line() != u32::MAX;
        same_line.then(|| (token.get_src_line() + 1, token.get_src_col().saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_map_is_refused() {
        for text in ["", "{}x", "[]", "null", "{\"version\":3,\"mappings\":\"!\"}"] {
            assert!(SourceMap::parse(text).is_none(), "{text}");
        }
        let map = SourceMap::parse(r#"{"version":3,"sources":["a"],"names":[],"mappings":"AACA"}"#).expect("a map");
        assert_eq!(map.lookup(1, 1), Some((2, 1)));
        assert_eq!(map.lookup(2, 1), None);
        assert_eq!(map.lookup(0, 0), None);
    }
}
