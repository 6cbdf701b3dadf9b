//! What an artifact holds, and how to load it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SourceMap;
use crate::model::{FunctionModule, Module};

/// Written beside an artifact's tree. Its digest is the artifact's: it names the content of every file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Emitted path → blake3 of the content.
    pub files: BTreeMap<String, String>,
    /// Sources that stand under another name, or at other positions, than the tenant wrote them.
    pub units: Vec<Unit>,
    pub init: Option<Module>,
    pub functions: Vec<FunctionModule>,
    /// Settings that the digest covers too: two versions that differ in a timeout are different closures.
    pub settings: String,
    /// The key of the layer that `node_modules` points to.
    pub layer: Option<String>,
    pub node_version: String,
    /// blake3 of what the tenant published, kept beside the tree. Empty: it was not kept, as before it could be.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spec: String,
}

/// One transpiled source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    pub source: String,
    pub emitted: String,
    /// A source map, where positions differ.
    pub map: Option<String>,
    /// Columns that something of ours takes at the beginning of the first line.
    #[serde(default)]
    pub prefix: u32,
}

impl Unit {
    /// From a place in the emitted file to one in the source, both from 1. `None`: it is the same.
    pub fn lookup(&self) -> Option<impl Fn(u32, u32) -> Option<(u32, u32)> + use<>> {
        let map = self.map.as_deref().and_then(SourceMap::parse);
        let prefix = self.prefix;
        let moved = map.is_some() || prefix > 0;
        moved.then_some(move |line, column: u32| {
            let column = if line == 1 { column.saturating_sub(prefix).max(1) } else { column };
            match &map {
                Some(map) => map.lookup(line, column),
                None => Some((line, column)),
            }
        })
    }
}

impl Manifest {
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data serializes")
    }

    /// `blake3:<hex>`.
    pub fn digest(&self) -> String {
        format!("blake3:{}", blake3::hash(&self.to_json()).to_hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_counts_on_the_first_line_only() {
        let map = r#"{"version":3,"sources":["a"],"names":[],"mappings":"AACA;AAAA"}"#.to_owned();
        let unit = |map: Option<String>, prefix| Unit { source: "a.ts".into(), emitted: "a.mjs".into(), map, prefix };
        assert!(unit(None, 0).lookup().is_none());
        let plain = unit(None, 10).lookup().expect("columns move");
        assert_eq!((plain(1, 15), plain(1, 3), plain(2, 15)), (Some((1, 5)), Some((1, 1)), Some((2, 15))));
        let mapped = unit(Some(map), 10).lookup().expect("lines move");
        assert_eq!((mapped(1, 11), mapped(2, 1)), (Some((2, 1)), Some((2, 1))));
    }
}
