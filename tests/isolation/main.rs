//! Attacks by a tenant's function on the real service, in every mode that this machine can show; and what must still work.
//!
//! The attacks are JavaScript (`attacks/`), with an addon for raw system calls (`addon.c`); each answers what came of it, mostly the
//! name of an error. What that must be stands in the tables here, next to what is known not to be stopped: outcomes like `ok` in a
//! table are holes that another layer, or the operator, has to close. See `mode` for what is skipped where.

#[macro_use]
mod mode;

mod controls;
mod egress;
mod files;
#[path = "../e2e/harness.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests")]
mod harness;
mod install;
mod neighbours;
mod network;
#[path = "../e2e/postgres.rs"]
#[allow(dead_code, reason = "the end-to-end tests use more of it")]
mod postgres;
mod processes;
#[path = "../e2e/publish_request.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests")]
mod publish_request;
mod replays;
mod resources;
mod syscalls;
mod tenant;
mod world;
