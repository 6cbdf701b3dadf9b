//! Through the front door: the real binary, real gRPC, real Node, real npm.

mod harness;
mod smoke;
