//! Through the front door: the real binary, real gRPC, real Node, real npm.

mod crashes;
mod failures;
mod harness;
mod orphans;
mod pool;
mod publish_request;
mod smoke;
mod tampering;
