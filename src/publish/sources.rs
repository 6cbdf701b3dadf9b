//! Which files a project may hold, and which of them are left out.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::error::{InvalidSpec, short};

/// How large a project's sources may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceLimits {
    pub files_max: usize,
    /// Of one file; a lockfile may have [`SourceLimits::lockfile_bytes_max`].
    pub file_bytes_max: usize,
    pub total_bytes_max: usize,
    pub lockfile_bytes_max: usize,
}

impl Default for SourceLimits {
    fn default() -> Self {
        Self { files_max: 2_000, file_bytes_max: 4 << 20, total_bytes_max: 24 << 20, lockfile_bytes_max: 8 << 20 }
    }
}

const PATH_BYTES_MAX: usize = 1024;
const SEGMENT_BYTES_MAX: usize = 255;

/// Checks paths and sizes, and takes out what must not take effect; each of those leaves a warning.
pub(super) fn check(
    files: BTreeMap<String, Bytes>,
    limits: &SourceLimits,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<String, Bytes>, InvalidSpec> {
    within("the number of files", files.len(), limits.files_max)?;
    let mut kept = BTreeMap::new();
    for (path, content) in files {
        check_path(&path)?;
        if let Some(reason) = ignored(&path) {
            warnings.push(format!("{path:?} is ignored: {reason}"));
            continue;
        }
        let lockfile = path == "package-lock.json";
        let bytes_max = if lockfile { limits.lockfile_bytes_max } else { limits.file_bytes_max };
        within(&format!("file {:?} (bytes)", short(&path)), content.len(), bytes_max)?;
        kept.insert(path, content);
    }
    within("the project (bytes)", kept.values().map(Bytes::len).sum(), limits.total_bytes_max)?;
    check_distinct(&kept)?;
    Ok(kept)
}

/// Refuses more than `limit`.
pub(super) fn within(what: &str, actual: usize, limit: usize) -> Result<(), InvalidSpec> {
    if actual <= limit {
        return Ok(());
    }
    Err(InvalidSpec::TooLarge { what: what.to_owned(), actual: actual as u64, limit: limit as u64 })
}

fn check_path(path: &str) -> Result<(), InvalidSpec> {
    let problem = if path.is_empty() {
        "a path cannot be empty"
    } else if path.len() > PATH_BYTES_MAX {
        "a path has at most 1024 bytes"
    } else if path.starts_with('/') {
        "use a path relative to the project, without a leading /"
    } else if path.contains('\\') {
        "separate directories with /, not with a backslash"
    } else if path.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')) {
        "a path cannot hold control characters"
    } else if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        "a path cannot hold empty, . or .. segments"
    } else if path.split('/').any(|segment| segment.len() > SEGMENT_BYTES_MAX) {
        "each name in a path has at most 255 bytes"
    } else if path.split('/').any(|segment| segment.eq_ignore_ascii_case("node_modules")) {
        "leave node_modules out: dependencies are installed while publishing"
    } else if path.split_once('/').is_some_and(|(first, _)| first.eq_ignore_ascii_case("package.json")) {
        "package.json is a file"
    } else if matches!(extension(path), "tsx" | "jsx") {
        return Err(InvalidSpec::UnsupportedFile {
            path: short(path),
            problem: "JSX is not supported: use .ts or .js",
        });
    } else {
        return Ok(());
    };
    Err(InvalidSpec::Path { path: short(path), problem })
}

/// Why a file is left out, if it is.
fn ignored(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if path.split('/').any(|segment| matches!(segment, ".git" | ".hg" | ".svn")) {
        return Some("a version control directory is not part of the project");
    }
    match name {
        ".npmrc" | ".yarnrc" | ".yarnrc.yml" | ".pnpmfile.cjs" => Some("the operator configures the registry"),
        "npm-shrinkwrap.json" | "yarn.lock" | "pnpm-lock.yaml" => Some("only package-lock.json pins dependencies"),
        ".DS_Store" => Some("it is not part of the project"),
        _ if name == ".env" || name.starts_with(".env.") => Some("set variables in the environment"),
        // Its "type" would change how Node reads the files beside it.
        "package.json" if path.contains('/') => Some("only the project's own package.json counts"),
        _ => None,
    }
}

/// No two paths may meet on a file system that ignores case, and no file may stand where a directory must.
fn check_distinct(files: &BTreeMap<String, Bytes>) -> Result<(), InvalidSpec> {
    let mut lower = BTreeMap::new();
    for path in files.keys() {
        if lower.insert(path.to_lowercase(), path).is_some() {
            return Err(InvalidSpec::Path {
                path: short(path),
                problem: "another path differs only in upper and lower case",
            });
        }
    }
    for path in lower.keys() {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        if let Some(file) = parents.filter_map(|parent| lower.get(parent)).next() {
            return Err(InvalidSpec::Path {
                path: short(file),
                problem: "it is a file and also the directory of another file",
            });
        }
    }
    Ok(())
}

/// `ts` of `a/b.test.ts`; empty if there is none.
pub(super) fn extension(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => extension,
        _ => "",
    }
}

/// Declarations only: nothing of it is left at run time.
pub(super) fn is_declaration(path: &str) -> bool {
    [".d.ts", ".d.mts", ".d.cts"].iter().any(|end| path.ends_with(end))
}

/// TypeScript or JavaScript with code in it.
pub(super) fn is_code(path: &str) -> bool {
    matches!(extension(path), "ts" | "mts" | "cts" | "js" | "mjs" | "cjs") && !is_declaration(path)
}

pub(super) fn is_typescript(path: &str) -> bool {
    matches!(extension(path), "ts" | "mts" | "cts")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(paths: &[&str]) -> Result<(Vec<String>, Vec<String>), &'static str> {
        let files = paths.iter().map(|path| ((*path).to_owned(), Bytes::from_static(b"x"))).collect();
        let mut warnings = Vec::new();
        check(files, &SourceLimits::default(), &mut warnings)
            .map(|files| (files.into_keys().collect(), warnings))
            .map_err(|err| err.reason())
    }

    #[test]
    fn a_path_stays_inside_the_project() {
        let segment = "s".repeat(255);
        let path = format!("{segment}/{segment}/{segment}/{segment}");
        for good in ["a.ts", "a/b c/ä.json", ".hidden", "a..b", "...", &segment, &format!("{path}/")[..1023]] {
            assert!(checked(&[good]).is_ok(), "{good}");
        }
        let long = format!("{path}/aa");
        assert_eq!(long.len(), 1026);
        for bad in [
            "",
            "/a",
            "a//b",
            "a/",
            "./a",
            "a/./b",
            "../a",
            "a/../b",
            "..",
            ".",
            "a\\b",
            "a\0b",
            "a\nb",
            "a\u{85}b",
            "node_modules/x/i.js",
            "lib/node_modules/x.js",
            "package.json/x",
            "lib/Node_Modules/x",
            &format!("{segment}s"),
            &long,
        ] {
            assert_eq!(checked(&[bad]), Err("INVALID_PATH"), "{bad}");
        }
        for bad in ["a.tsx", "lib/b.jsx"] {
            assert_eq!(checked(&[bad]), Err("UNSUPPORTED_FILE"), "{bad}");
        }
    }

    #[test]
    fn paths_do_not_collide() {
        assert_eq!(checked(&["lib/a.ts", "Lib/A.ts"]), Err("INVALID_PATH"));
        assert_eq!(checked(&["lib", "lib/a.ts"]), Err("INVALID_PATH"));
        assert_eq!(checked(&["LIB", "lib/a/b.ts"]), Err("INVALID_PATH"));
        assert!(checked(&["lib", "lib2/a.ts", "lib.ts"]).is_ok());
    }

    #[test]
    fn what_must_not_take_effect_is_dropped_with_a_warning() {
        let dropped = [
            ".npmrc",
            "lib/.npmrc",
            ".git/config",
            ".git",
            ".env",
            ".env.local",
            "yarn.lock",
            "npm-shrinkwrap.json",
            "lib/package.json",
            ".DS_Store",
        ];
        for path in dropped {
            let (files, warnings) = checked(&[path, "a.ts"]).expect(path);
            assert_eq!(files, ["a.ts"], "{path}");
            assert!(warnings.len() == 1 && warnings[0].contains(path), "{warnings:?}");
        }
        assert!(checked(&["a.ts", "package.json", ".envrc", ".github/x.yml"]).expect("kept").1.is_empty());
    }

    #[test]
    fn each_size_is_limited() {
        let limits = SourceLimits { files_max: 2, file_bytes_max: 4, total_bytes_max: 6, lockfile_bytes_max: 6 };
        let sized = |sizes: &[(&str, usize)]| {
            let files = sizes.iter().map(|(path, size)| ((*path).to_owned(), vec![b'x'; *size].into())).collect();
            check(files, &limits, &mut Vec::new()).map(|_| ()).map_err(|err| err.reason())
        };
        assert_eq!(sized(&[("a", 4), ("b", 2)]), Ok(()));
        assert_eq!(sized(&[("a", 5)]), Err("TOO_LARGE"));
        assert_eq!(sized(&[("a", 4), ("b", 3)]), Err("TOO_LARGE"));
        assert_eq!(sized(&[("a", 1), ("b", 1), ("c", 1)]), Err("TOO_LARGE"));
        assert_eq!(sized(&[("package-lock.json", 6)]), Ok(()));
        assert_eq!(sized(&[("package-lock.json", 7)]), Err("TOO_LARGE"));
    }
}
