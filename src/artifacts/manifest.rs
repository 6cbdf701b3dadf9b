//! What an artifact holds, and how to load it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
}

/// One transpiled source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    pub source: String,
    pub emitted: String,
    /// A source map, where positions differ.
    pub map: Option<String>,
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
