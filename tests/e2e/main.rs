//! Through the front door: the real binary, real gRPC, real Node, real npm.

mod crashes;
mod edge;
mod events;
mod failures;
mod harness;
mod history;
mod idempotency;
mod invoke;
mod logs;
mod orphans;
mod pool;
mod publish_request;
mod shutdown;
mod smoke;
mod tampering;
