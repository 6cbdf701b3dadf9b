//! What is to differ from a version that there is, applied to what that version was published from.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use super::error::InvalidSpec;
use super::functions::{Code, FunctionDecl, function_name, lookup};
use super::package;
use super::project::{ProjectSpec, is_initialization};
use crate::model::{Catalogue, Limits, TriggerType, VersionNumber};

/// See `VersionChanges` of the API, whose words these are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// `None`: the active version.
    pub version: Option<VersionNumber>,
    pub files: BTreeMap<String, Bytes>,
    pub files_removed: Vec<String>,
    pub functions: Vec<FunctionDecl>,
    pub functions_removed: Vec<String>,
    pub dependencies: Edit,
    pub environment: Edit,
    pub initialization_script: Option<String>,
    pub limits: Option<Limits>,
    pub scripts_allowed: Vec<String>,
}

/// Of named values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edit {
    pub set: BTreeMap<String, String>,
    pub removed: Vec<String>,
    /// What is not set goes.
    pub replace: bool,
}

impl Edit {
    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty() && !self.replace
    }

    fn apply(self, values: &mut BTreeMap<String, String>) {
        if self.replace {
            values.clear();
        }
        for name in &self.removed {
            values.remove(name);
        }
        values.extend(self.set);
    }
}

impl Changes {
    /// Of what is changed twice – removed and set – what is set counts.
    ///
    /// # Errors
    /// A trigger type is unknown, or the `package.json` to change is none. Whether what comes out holds together is asked later.
    pub fn apply(self, base: ProjectSpec, catalogue: &Catalogue) -> Result<ProjectSpec, InvalidSpec> {
        let mut spec = base;
        for path in &self.files_removed {
            spec.files.remove(path);
        }
        for spelling in &self.functions_removed {
            let trigger_type = trigger_type(catalogue, spelling)?;
            spec.functions.retain(|function| !is_of(catalogue, &function.trigger_type, &trigger_type));
            remove_files(&mut spec.files, catalogue, &trigger_type, None);
        }
        set_files(&mut spec, self.files, catalogue);
        for function in self.functions {
            set_function(&mut spec, function, catalogue)?;
        }
        if !self.dependencies.is_empty() {
            change_package(&mut spec.files, &self.dependencies)?;
            self.dependencies.apply(&mut spec.dependencies);
        }
        self.environment.apply(&mut spec.environment);
        if let Some(script) = self.initialization_script {
            spec.files.retain(|path, _| !is_initialization(path));
            spec.initialization_script = script;
        }
        if let Some(limits) = self.limits {
            spec.limits = limits;
        }
        spec.scripts_allowed.extend(self.scripts_allowed);
        spec.scripts_allowed.sort();
        spec.scripts_allowed.dedup();
        Ok(spec)
    }
}

fn trigger_type(catalogue: &Catalogue, spelling: &str) -> Result<TriggerType, InvalidSpec> {
    Ok(lookup(catalogue, "function", spelling, "")?.trigger_type.clone())
}

pub(super) fn is_of(catalogue: &Catalogue, spelling: &str, trigger_type: &TriggerType) -> bool {
    catalogue.find(spelling).is_some_and(|trigger| trigger.trigger_type == *trigger_type)
}

/// The files under `functions/` that are this trigger type's, but for `kept`.
pub(super) fn remove_files(
    files: &mut BTreeMap<String, Bytes>,
    catalogue: &Catalogue,
    trigger_type: &TriggerType,
    kept: Option<&str>,
) {
    files.retain(|path, _| {
        let named = function_name(path).is_some_and(|spelling| is_of(catalogue, spelling, trigger_type));
        !named || kept == Some(path.as_str())
    });
}

/// A file that is a function, or the initialization script, takes the place of what was that before, under whatever name or inline.
fn set_files(spec: &mut ProjectSpec, files: BTreeMap<String, Bytes>, catalogue: &Catalogue) {
    for (path, content) in files {
        if let Some(trigger) = function_name(&path).and_then(|spelling| catalogue.find(spelling)) {
            remove_files(&mut spec.files, catalogue, &trigger.trigger_type, None);
            for function in &mut spec.functions {
                if is_of(catalogue, &function.trigger_type, &trigger.trigger_type) {
                    function.code = None;
                }
            }
        }
        if is_initialization(&path) {
            spec.files.retain(|other, _| !is_initialization(other));
            spec.initialization_script.clear();
        }
        spec.files.insert(path, content);
    }
}

fn set_function(spec: &mut ProjectSpec, mut function: FunctionDecl, catalogue: &Catalogue) -> Result<(), InvalidSpec> {
    let trigger_type = trigger_type(catalogue, &function.trigger_type)?;
    let before = spec.functions.iter().position(|before| is_of(catalogue, &before.trigger_type, &trigger_type));
    let before = before.map(|at| spec.functions.remove(at));
    match (&function.code, before) {
        (Some(Code::Entry(entry)), _) => {
            let entry = entry.strip_prefix("./").unwrap_or(entry).to_owned();
            remove_files(&mut spec.files, catalogue, &trigger_type, Some(&entry));
        }
        (Some(Code::Source(_)), _) => remove_files(&mut spec.files, catalogue, &trigger_type, None),
        (None, Some(before)) => (function.code, function.language) = (before.code, before.language),
        (None, None) => {}
    }
    spec.functions.push(function);
    Ok(())
}

/// The request's dependencies stand over those of `package.json`: only what is to go has to go there too.
fn change_package(files: &mut BTreeMap<String, Bytes>, edit: &Edit) -> Result<(), InvalidSpec> {
    // It says how the dependencies before were resolved.
    files.remove("package-lock.json");
    let Some(file) = files.get("package.json").filter(|_| edit.replace || !edit.removed.is_empty()) else {
        return Ok(());
    };
    let mut package = package::read_object(file)?;
    for key in ["dependencies", "optionalDependencies"] {
        match package.get_mut(key) {
            Some(_) if edit.replace => drop(package.remove(key)),
            Some(Value::Object(dependencies)) => dependencies.retain(|name, _| !edit.removed.contains(name)),
            _ => {}
        }
    }
    let text = serde_json::to_vec_pretty(&package).expect("plain data serializes");
    files.insert("package.json".to_owned(), Bytes::from(text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> ProjectSpec {
        let file = |path: &str, text: &'static str| (path.to_owned(), Bytes::from_static(text.as_bytes()));
        ProjectSpec {
            files: BTreeMap::from([
                file("functions/UserSentMessage.ts", "1"),
                file("init.ts", "init"),
                file("lib/a.ts", "a"),
                file("package.json", r#"{"name":"x","dependencies":{"a":"1","b":"1"}}"#),
                file("package-lock.json", "{}"),
            ]),
            functions: vec![inline("UserReadMessage", "read")],
            environment: values(&[("A", "1"), ("B", "2")]),
            ..ProjectSpec::default()
        }
    }

    fn inline(trigger_type: &str, source: &str) -> FunctionDecl {
        let code = Some(Code::Source(source.into()));
        FunctionDecl { trigger_type: trigger_type.into(), code, ..FunctionDecl::default() }
    }

    fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn changed(changes: Changes) -> ProjectSpec {
        changes.apply(base(), &Catalogue::new(&[]).expect("built in")).expect("fine")
    }

    #[test]
    fn what_is_not_named_stays() {
        assert_eq!(changed(Changes::default()), base());
        let environment = Edit { set: values(&[("B", "3")]), removed: vec!["A".into()], replace: false };
        let spec = changed(Changes { environment, ..Changes::default() });
        assert_eq!(spec, ProjectSpec { environment: values(&[("B", "3")]), ..base() });
        let environment = Edit { set: values(&[("C", "3")]), replace: true, ..Edit::default() };
        assert_eq!(changed(Changes { environment, ..Changes::default() }).environment, values(&[("C", "3")]));
    }

    #[test]
    fn a_function_is_replaced_wherever_its_code_was() {
        let spec = changed(Changes { functions: vec![inline("User Sent Message", "2")], ..Changes::default() });
        assert!(!spec.files.contains_key("functions/UserSentMessage.ts") && spec.functions.len() == 2);
        let files = BTreeMap::from([("functions/UserReadMessageEvent.js".to_owned(), Bytes::from_static(b"2"))]);
        let spec = changed(Changes { files, ..Changes::default() });
        assert_eq!((spec.functions[0].code.as_ref(), spec.files.len()), (None, 6));
        let settings = FunctionDecl { code: None, disabled: true, ..inline("UserReadMessage", "") };
        let spec = changed(Changes { functions: vec![settings], ..Changes::default() });
        assert_eq!(spec.functions, [FunctionDecl { disabled: true, ..inline("UserReadMessage", "read") }]);
        let entry = FunctionDecl { code: Some(Code::Entry("./lib/a.ts".into())), ..inline("UserSentMessage", "") };
        let spec = changed(Changes { functions: vec![entry], ..Changes::default() });
        assert!(!spec.files.contains_key("functions/UserSentMessage.ts") && spec.files.contains_key("lib/a.ts"));
        let functions_removed = vec!["UserSentMessageEvent".into(), "UserReadMessage".into()];
        let spec = changed(Changes { functions_removed, ..Changes::default() });
        assert!(spec.functions.is_empty() && !spec.files.contains_key("functions/UserSentMessage.ts"));
    }

    #[test]
    fn there_stays_one_initialization_script() {
        let script = |text: &str| Changes { initialization_script: Some(text.to_owned()), ..Changes::default() };
        let spec = changed(script("new"));
        assert!(spec.initialization_script == "new" && !spec.files.contains_key("init.ts"));
        assert!(changed(script("")).initialization_script.is_empty());
        let files = BTreeMap::from([("init.mjs".to_owned(), Bytes::from_static(b"2"))]);
        let spec = changed(Changes { files, ..Changes::default() });
        assert!(spec.files.contains_key("init.mjs") && !spec.files.contains_key("init.ts"));
    }

    #[test]
    fn dependencies_change_in_package_json_too_and_are_resolved_anew() {
        let package = |spec: &ProjectSpec| {
            serde_json::from_slice::<Value>(&spec.files["package.json"]).expect("JSON")["dependencies"].clone()
        };
        let dependencies = Edit { set: values(&[("c", "2")]), removed: vec!["a".into()], replace: false };
        let spec = changed(Changes { dependencies, ..Changes::default() });
        assert_eq!(package(&spec), serde_json::json!({"b": "1"}));
        assert!(spec.dependencies == values(&[("c", "2")]) && !spec.files.contains_key("package-lock.json"));
        let dependencies = Edit { set: values(&[("c", "2")]), replace: true, ..Edit::default() };
        let spec = changed(Changes { dependencies, ..Changes::default() });
        assert!(package(&spec).is_null() && spec.dependencies == values(&[("c", "2")]));
    }

    #[test]
    fn an_unknown_trigger_type_is_refused() {
        let catalogue = Catalogue::new(&[]).expect("built in");
        let refused = |changes: Changes| changes.apply(base(), &catalogue).map(|_| ()).map_err(|err| err.reason());
        let functions = vec![inline("UserFlew", "")];
        assert_eq!(refused(Changes { functions, ..Changes::default() }), Err("UNKNOWN_TRIGGER_TYPE"));
        let functions_removed = vec!["UserFlew".into()];
        assert_eq!(refused(Changes { functions_removed, ..Changes::default() }), Err("UNKNOWN_TRIGGER_TYPE"));
    }
}
