//! Through the front door: the real binary, real gRPC, real Node, real npm.

mod activation;
mod commands;
mod crash;
mod crashes;
mod edge;
mod events;
mod failures;
mod harness;
mod history;
mod idempotency;
mod inspect;
mod install;
mod install_failures;
mod invoke;
mod lockfile;
mod logs;
mod orphans;
mod pool;
mod publish;
mod publish_request;
mod settings;
mod shutdown;
mod smoke;
mod tampering;
mod verify;
mod versions;
