//! What a publish request says, checked: paths, functions, dependencies, environment, limits.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::environment;
use super::error::InvalidSpec;
use super::functions::{self, Code, FunctionDecl};
use super::lockfile;
use super::package::{self, PackageJson};
use super::registry::Registries;
use super::sources::{self, SourceLimits, extension, is_code, within};
use crate::model::{Catalogue, Function, Limits};

/// A publish request as it came. It is kept beside what it became, its secrets left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProjectSpec {
    #[serde(with = "file_text")]
    pub files: BTreeMap<String, Bytes>,
    pub functions: Vec<FunctionDecl>,
    pub dependencies: BTreeMap<String, String>,
    #[serde(skip)]
    pub environment: BTreeMap<String, String>,
    /// Inline; empty: `init.ts` or the like among the files, if there is one.
    pub initialization_script: String,
    pub limits: Limits,
    pub scripts_allowed: Vec<String>,
}

/// A request that holds together. Its code is not parsed yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Project {
    /// As the tenant wrote them, inline sources included.
    pub files: BTreeMap<String, Bytes>,
    /// Sorted by trigger type.
    pub functions: Vec<Function>,
    /// Path of the initialization script.
    pub init: Option<String>,
    pub package: PackageJson,
    pub lockfile: Option<Bytes>,
    pub environment: BTreeMap<String, String>,
    pub limits: Limits,
    pub scripts_allowed: Vec<String>,
    /// What was left out, and why.
    pub warnings: Vec<String>,
    /// What all of this came from, but for the environment and the files that were left out.
    pub spec: ProjectSpec,
}

impl ProjectSpec {
    /// A function's source as it was written: a file's, or what was given inline.
    pub fn source(&self, function: &Function, catalogue: &Catalogue) -> Option<String> {
        if let Some(file) = self.files.get(&function.entry) {
            return Some(String::from_utf8_lossy(file).into_owned());
        }
        let mut declared = self.functions.iter().filter(|declaration| {
            catalogue.find(&declaration.trigger_type).is_some_and(|found| found.trigger_type == function.trigger_type)
        });
        declared.find_map(|declaration| match &declaration.code {
            Some(Code::Source(source)) => Some(source.clone()),
            _ => None,
        })
    }

    /// The initialization script, if there is one.
    pub fn initialization(&self) -> Option<String> {
        let file = self.files.iter().find(|(path, _)| is_initialization(path));
        let file = file.map(|(_, content)| String::from_utf8_lossy(content).into_owned());
        file.or_else(|| Some(self.initialization_script.clone())).filter(|script| !script.trim().is_empty())
    }

    /// All that it asks npm for: name → what was asked.
    ///
    /// # Errors
    /// Its `package.json` is none.
    pub fn asked_dependencies(&self) -> Result<BTreeMap<String, String>, InvalidSpec> {
        let package = package::merge(self.files.get("package.json").map(AsRef::as_ref), self.dependencies.clone())?;
        Ok(package.dependencies.into_iter().chain(package.optional).collect())
    }
}

const FUNCTIONS_MAX: usize = 500;
const SCRIPTS_ALLOWED_MAX: usize = 200;

impl Project {
    /// # Errors
    /// Names the first thing that is wrong with the request.
    pub fn check(
        spec: ProjectSpec,
        catalogue: &Catalogue,
        limits: &SourceLimits,
        registries: &Registries,
    ) -> Result<Self, InvalidSpec> {
        let mut warnings = Vec::new();
        let mut kept = ProjectSpec { environment: BTreeMap::new(), ..spec.clone() };
        let mut files = sources::check(spec.files, limits, &mut warnings)?;
        kept.files.clone_from(&files);
        within("the number of functions", spec.functions.len(), FUNCTIONS_MAX)?;
        let init = add_initialization(&mut files, spec.initialization_script)?;
        let functions = functions::resolve(&mut files, spec.functions, catalogue)?;
        check_inline(&files, limits)?;
        let package = package::merge(files.get("package.json").map(AsRef::as_ref), spec.dependencies)?;
        warnings.extend(package.ignored.iter().map(|field| {
            format!("package.json: {field} is ignored: only dependencies and optionalDependencies are installed")
        }));
        let lockfile = files.get("package-lock.json").cloned();
        if let Some(lockfile) = &lockfile {
            lockfile::check(lockfile, registries)?;
        }
        environment::check(&spec.environment)?;
        spec.limits.check()?;
        Ok(Self {
            scripts_allowed: check_scripts(spec.scripts_allowed)?,
            files,
            functions,
            init,
            package,
            lockfile,
            environment: spec.environment,
            limits: spec.limits,
            warnings,
            spec: kept,
        })
    }

    /// # Errors
    /// There is nothing that could run.
    pub fn require_functions(&self) -> Result<(), InvalidSpec> {
        if self.functions.is_empty() { Err(InvalidSpec::NoFunctions) } else { Ok(()) }
    }
}

/// Files as text where they are text: what is kept can be read by people.
mod file_text {
    use std::collections::BTreeMap;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Binary { base64: String },
    }

    pub fn serialize<S: Serializer>(files: &BTreeMap<String, Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        let content = |bytes: &Bytes| match std::str::from_utf8(bytes) {
            Ok(text) => Content::Text(text.to_owned()),
            Err(_) => Content::Binary { base64: STANDARD.encode(bytes) },
        };
        serializer.collect_map(files.iter().map(|(path, bytes)| (path, content(bytes))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Bytes>, D::Error> {
        let files: BTreeMap<String, Content> = BTreeMap::deserialize(deserializer)?;
        let bytes = |content| match content {
            Content::Text(text) => Ok(Bytes::from(text)),
            Content::Binary { base64 } => STANDARD.decode(base64).map(Bytes::from).map_err(serde::de::Error::custom),
        };
        files.into_iter().map(|(path, content)| Ok((path, bytes(content)?))).collect()
    }
}

/// Whether a file is the initialization script by its name.
pub(super) fn is_initialization(path: &str) -> bool {
    path.starts_with("init.") && !path.contains('/') && is_code(path) && path.len() == 5 + extension(path).len()
}

fn add_initialization(files: &mut BTreeMap<String, Bytes>, inline: String) -> Result<Option<String>, InvalidSpec> {
    let wrong = |problem: String| Err(InvalidSpec::Initialization(problem));
    let found: Vec<String> = files.keys().filter(|path| is_initialization(path)).cloned().collect();
    match (found.as_slice(), inline.trim().is_empty()) {
        ([first, second, ..], _) => wrong(format!("there are both {first} and {second}: keep one")),
        ([file], false) => wrong(format!("it is given inline and as {file}: keep one")),
        ([file], true) => Ok(Some(file.clone())),
        ([], true) => Ok(None),
        ([], false) => {
            files.insert("init.ts".to_owned(), Bytes::from(inline));
            Ok(Some("init.ts".to_owned()))
        }
    }
}

/// Inline sources have become files, which the limits hold for too. Nothing but their size can be wrong with them now:
/// their names are ours. A file elsewhere may still stand where one's directory must.
fn check_inline(files: &BTreeMap<String, Bytes>, limits: &SourceLimits) -> Result<(), InvalidSpec> {
    sources::check(files.clone(), limits, &mut Vec::new()).map(|_| ())
}

fn check_scripts(mut names: Vec<String>) -> Result<Vec<String>, InvalidSpec> {
    within("the number of scripts_allowed", names.len(), SCRIPTS_ALLOWED_MAX)?;
    names.iter().try_for_each(|name| package::check_name(name))?;
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::publish::Code;

    fn catalogue() -> Catalogue {
        Catalogue::new(&[]).expect("built in")
    }

    fn spec() -> ProjectSpec {
        let files = BTreeMap::from([("functions/UserSentMessage.ts".to_owned(), Bytes::from_static(b"x"))]);
        ProjectSpec { files, ..ProjectSpec::default() }
    }

    fn checked(change: impl FnOnce(&mut ProjectSpec)) -> Result<Project, &'static str> {
        let mut spec = spec();
        change(&mut spec);
        Project::check(spec, &catalogue(), &SourceLimits::default(), &Registries::public()).map_err(|err| err.reason())
    }

    fn add(spec: &mut ProjectSpec, path: &str) {
        spec.files.insert(path.into(), Bytes::from_static(b"{}"));
    }

    #[test]
    fn a_project_keeps_what_was_asked_for() {
        let project = checked(|spec| {
            spec.dependencies.insert("b".into(), "1".into());
            spec.scripts_allowed = vec!["z".into(), "@a/b".into(), "z".into()];
            spec.files.insert("package.json".into(), Bytes::from_static(br#"{"dependencies":{"a":"2"}}"#));
            spec.files.insert("package-lock.json".into(), Bytes::from_static(br#"{"lockfileVersion":3}"#));
            add(spec, ".npmrc");
        })
        .expect("fine");
        assert_eq!(project.package.dependencies.len(), 2);
        assert_eq!(project.scripts_allowed, ["@a/b", "z"]);
        assert!(project.lockfile.is_some() && project.init.is_none());
        assert!(project.warnings.len() == 1 && project.warnings[0].contains("operator configures the registry"));
    }

    #[test]
    fn each_part_is_checked() {
        let name = |name: &str| vec![name.to_owned()];
        assert_eq!(checked(|spec| spec.limits.concurrency = 0).map(|_| ()), Err("INVALID_LIMIT"));
        assert_eq!(checked(|spec| spec.scripts_allowed = name("../x")).map(|_| ()), Err("INVALID_DEPENDENCY"));
        assert_eq!(checked(|spec| spec.scripts_allowed = vec!["a".into(); 201]).map(|_| ()), Err("TOO_LARGE"));
        assert!(checked(|spec| spec.scripts_allowed = vec!["a".into(); 200]).is_ok());
        assert_eq!(checked(|spec| add(spec, "package-lock.json")).map(|_| ()), Err("INVALID_LOCKFILE"));
        let variable = |spec: &mut ProjectSpec| drop(spec.environment.insert("PATH".into(), "/".into()));
        assert_eq!(checked(variable).map(|_| ()), Err("FORBIDDEN_VARIABLE"));
        let dependency = |spec: &mut ProjectSpec| drop(spec.dependencies.insert("a".into(), "file:x".into()));
        assert_eq!(checked(dependency).map(|_| ()), Err("INVALID_DEPENDENCY"));
        assert_eq!(checked(|spec| add(spec, "../x")).map(|_| ()), Err("INVALID_PATH"));
        let nothing = checked(|spec| spec.files.clear()).expect("an app without functions");
        assert_eq!(nothing.require_functions().map_err(|err| err.reason()), Err("NO_FUNCTIONS"));
    }

    #[test]
    fn there_is_one_initialization_script() {
        let inline = |spec: &mut ProjectSpec| spec.initialization_script = "exports.a = 1".into();
        assert_eq!(checked(inline).expect("inline").init.as_deref(), Some("init.ts"));
        assert_eq!(checked(|spec| add(spec, "init.mjs")).expect("a file").init.as_deref(), Some("init.mjs"));
        assert_eq!(checked(|spec| spec.initialization_script = " \n".into()).expect("blank").init, None);
        for path in ["init.d.ts", "lib/init.ts", "init.json", "init.test.ts", "init"] {
            assert_eq!(checked(|spec| add(spec, path)).expect(path).init, None, "{path}");
        }
        let both = |spec: &mut ProjectSpec| {
            inline(spec);
            add(spec, "init.js");
        };
        assert_eq!(checked(both).map(|_| ()), Err("INVALID_INITIALIZATION_SCRIPT"));
        let two = |spec: &mut ProjectSpec| ["init.ts", "init.js"].iter().for_each(|path| add(spec, path));
        assert_eq!(checked(two).map(|_| ()), Err("INVALID_INITIALIZATION_SCRIPT"));
    }

    #[test]
    fn inline_sources_count_as_files() {
        let limits = SourceLimits { file_bytes_max: 10, ..SourceLimits::default() };
        let inline = |source: &str, extra: &str| {
            let function = FunctionDecl {
                trigger_type: "UserReadMessage".into(),
                code: Some(Code::Source(source.into())),
                ..FunctionDecl::default()
            };
            let mut spec = ProjectSpec { functions: vec![function], ..ProjectSpec::default() };
            add(&mut spec, extra);
            Project::check(spec, &catalogue(), &limits, &Registries::public()).map(|_| ()).map_err(|err| err.reason())
        };
        assert_eq!(inline("0123456789", "a"), Ok(()));
        assert_eq!(inline("0123456789a", "a"), Err("TOO_LARGE"));
        assert_eq!(inline("0", "functions"), Err("INVALID_PATH"));
    }

    #[test]
    fn a_spec_is_kept_without_secrets_and_read_back() {
        let project = checked(|spec| {
            spec.files.insert("logo.png".into(), Bytes::from_static(&[0xff, 0, 0xfe]));
            add(spec, ".npmrc");
            spec.environment.insert("TOKEN".into(), "hunter2".into());
            spec.functions = vec![FunctionDecl {
                trigger_type: "UserSentMessage".into(),
                timeout: Some(std::time::Duration::from_millis(1500)),
                ..FunctionDecl::default()
            }];
        })
        .expect("fine");
        let text = serde_json::to_string(&project.spec).expect("plain data");
        assert!(!text.contains("hunter2") && !text.contains(".npmrc"), "{text}");
        let read: ProjectSpec = serde_json::from_str(&text).expect("our own");
        assert_eq!(read, project.spec);
        assert_eq!(read.files["logo.png"].as_ref(), [0xff, 0, 0xfe]);
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(
            files in prop::collection::btree_map("\\PC{0,12}|functions/\\PC{0,12}|package.json|package-lock.json|init.ts", prop::collection::vec(any::<u8>(), 0..40), 0..6),
            json in "\\PC{0,60}",
            names in prop::collection::btree_map("\\PC{0,12}", "\\PC{0,12}", 0..3),
        ) {
            let mut files: BTreeMap<String, Bytes> = files.into_iter().map(|(path, bytes)| (path, bytes.into())).collect();
            files.insert("functions/UserSentMessage.ts".into(), Bytes::new());
            files.insert("package-lock.json".into(), json.into());
            let spec = ProjectSpec { files, dependencies: names.clone(), environment: names, ..ProjectSpec::default() };
            let _ = Project::check(spec, &catalogue(), &SourceLimits::default(), &Registries::public()).map_err(|err| err.to_string());
        }
    }
}
