pub mod artifacts;
pub mod model;
pub mod pool;
pub mod sandbox;
pub mod store;
pub mod worker;

/// Generated from `proto/`. Appears only in `api`, `cli` and the tests.
#[allow(clippy::all, missing_docs)]
pub mod proto {
    tonic::include_proto!("chatfunctions.v1");
    /// For reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
