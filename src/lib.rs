//! The self-hosted runtime for chat functions. The words are in `model`; read upwards from there, or downwards from `service`.
//!
//! One invocation, from call to reply: [`api`] turns `Invoke` into an [`invoke::Call`] → [`invoke`] checks the event against the
//! [`model::Catalogue`] and asks [`serving`] for the version → that version's [`pool`] leases a [`worker`] → the worker's task
//! sends the event to its Node process, which [`sandbox`] started → outcome, verdict, and a row for [`history`] on the way back.
//! A non-blocking event stops at [`store`] instead, and [`dispatch`] takes the same way later.
//!
//! [`trial`] runs functions on the side, unrecorded: drafts, and recorded invocations against another version.
//!
//! [`replicas`] keeps several of these services, on one database of PostgreSQL, from losing or repeating each other's work.
//!
//! A version comes to be in [`publish`], and is kept by [`artifacts`] (files) and [`store`] (everything else).
//!
//! Before any of that, [`host`] finds Node and npm and prepares the data directory, and [`sandbox::Sandbox::start`] starts the broker,
//! which finds out what confines children here: [`model::Report`], of [`model::LayerName`]s, in one [`model::Mode`]. The service starts
//! only if [`host::check_isolation`] is content. A child is then confined by a cgroup, namespaces with a root of their own, a user of
//! its own, rlimits, no capabilities, Landlock and seccomp, in this order; the egress supervisor makes its connections. What each of
//! them stops, and what none does, is in `docs/security.md`.
//!
//! What of all this is counted, [`metrics`] says; where the time of one call went, [`traces`].
//!
//! Imports point downwards: `cli → service → api → dispatch → invoke, publish → trial → serving → pool → worker → host → config → sandbox → model`.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "these docs are for those who read the code; they are built with private items"
)]

pub mod api;
pub mod artifacts;
pub mod backup;
pub mod cli;
pub mod config;
pub mod declarations;
pub mod dispatch;
pub mod drain;
pub mod history;
pub mod host;
pub mod invoke;
pub mod metrics;
pub mod model;
pub mod pool;
pub mod publish;
pub mod replicas;
pub mod sandbox;
pub mod secrets;
pub mod service;
pub mod serving;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod trial;
pub mod worker;

/// Generated from `proto/`. Appears in `api` and `cli` only.
#[allow(clippy::all, missing_docs)]
pub mod proto {
    tonic::include_proto!("chatfunctions.v1");
    /// For reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
