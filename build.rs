//! Compiles `proto/` without protoc, and writes the descriptors that reflection serves.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 5] = [
    "chatfunctions/v1/common.proto",
    "chatfunctions/v1/invocation_service.proto",
    "chatfunctions/v1/version_service.proto",
    "chatfunctions/v1/event_service.proto",
    "chatfunctions/v1/app_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=migrations");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
