//! The messages of `node-shim/PROTOCOL.md`. Tenants' JSON passes through as raw text; everything from a worker is untrusted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::model::{
    Denial, FailureKind, FunctionFailure, FunctionModule, LogLevel, Module, Outcome, RawJson, Sdk, TraceContext,
};

/// Longest text that we keep of an error's message, stack or name; the shim cuts earlier.
const TEXT_BYTES_MAX: usize = 64 << 10;

#[derive(Serialize)]
struct Message<'a, P> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    method: &'static str,
    params: P,
}

/// Params of `initialize`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Initialize {
    pub app_id: String,
    pub version: u64,
    pub directory: String,
    pub environment: BTreeMap<String, String>,
    pub concurrency: u32,
    pub init: Option<Module>,
    pub functions: Vec<FunctionModule>,
    pub sdk: Option<Sdk>,
    pub limits: ShimLimits,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimLimits {
    pub result_bytes_max: usize,
    pub log_lines_max: usize,
    pub log_bytes_max: usize,
    pub log_line_bytes_max: usize,
}

/// Params of `invoke`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invoke<'a> {
    pub trigger_type: &'a str,
    pub invocation_id: &'a str,
    pub attempt: u32,
    pub hops: u32,
    pub timeout_ms: u64,
    pub trace: Trace<'a>,
    pub event: &'a RawValue,
}

/// Where in a trace the function runs.
#[derive(Debug, Serialize)]
pub struct Trace<'a> {
    traceparent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
    onward: bool,
}

impl<'a> From<&'a TraceContext> for Trace<'a> {
    fn from(context: &'a TraceContext) -> Self {
        Self { traceparent: context.traceparent(), tracestate: context.tracestate(), onward: context.onward }
    }
}

#[derive(Serialize)]
struct Cancel<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct Nothing {}

fn encode<P: Serialize>(id: Option<&str>, method: &'static str, params: P) -> Vec<u8> {
    let message = Message { jsonrpc: "2.0", id, method, params };
    serde_json::to_vec(&message).expect("plain data serializes")
}

pub fn initialize(id: &str, params: &Initialize) -> Vec<u8> {
    encode(Some(id), "initialize", params)
}

pub fn invoke(id: &str, params: &Invoke<'_>) -> Vec<u8> {
    encode(Some(id), "invoke", params)
}

pub fn cancel(id: &str) -> Vec<u8> {
    encode(None, "cancel", Cancel { id })
}

pub fn shutdown(id: &str) -> Vec<u8> {
    encode(Some(id), "shutdown", Nothing {})
}

/// What a worker said.
#[derive(Debug)]
pub enum Inbound<'a> {
    Ready {
        node: String,
    },
    /// It has read `initialize`: tenants' code loads from now on.
    Initializing,
    Log {
        id: Option<Cow<'a, str>>,
        level: LogLevel,
        text: String,
        at_ms: u64,
    },
    /// `exiting`: what it has not answered by now it never began.
    Fault {
        failure: FunctionFailure,
        exiting: bool,
    },
    Response {
        id: Cow<'a, str>,
        body: Response<'a>,
    },
}

#[derive(Debug)]
pub enum Response<'a> {
    Result(&'a RawValue),
    Error { message: String, failure: Option<FunctionFailure>, phase: String },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    message: String,
    #[serde(default)]
    data: Option<ErrorData>,
}

#[derive(Deserialize)]
struct ErrorData {
    #[serde(default)]
    phase: String,
    #[serde(default)]
    failure: Option<WireFailure>,
}

#[derive(Deserialize)]
struct ReadyParams {
    #[serde(default)]
    node: String,
}

#[derive(Deserialize)]
struct LogParams<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    level: String,
    text: String,
    #[serde(default)]
    at: f64,
}

#[derive(Deserialize)]
struct FaultParams {
    failure: WireFailure,
    exiting: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireFailure {
    kind: String,
    name: String,
    message: String,
    stack: String,
    code: Option<String>,
}

impl From<WireFailure> for FunctionFailure {
    fn from(wire: WireFailure) -> Self {
        let kind = match wire.kind.as_str() {
            "CRASHED" => FailureKind::Crashed,
            "BAD_RESULT" => FailureKind::BadResult,
            "INIT_FAILED" => FailureKind::InitFailed,
            "OUT_OF_MEMORY" => FailureKind::OutOfMemory,
            "COLLATERAL" => FailureKind::Collateral,
            _ => FailureKind::Thrown,
        };
        Self {
            kind,
            name: cut(wire.name),
            message: cut(wire.message),
            stack: cut(wire.stack),
            code: cut(wire.code.unwrap_or_default()),
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    }
    text
}

/// # Errors
/// The frame is not a message of the protocol: the worker is not to be trusted any further.
pub fn parse(frame: &[u8]) -> Result<Inbound<'_>, serde_json::Error> {
    use serde::de::Error as _;
    let envelope: Envelope<'_> = serde_json::from_slice(frame)?;
    let params = || envelope.params.map_or("{}", RawValue::get);
    match (envelope.method.as_deref(), envelope.id) {
        (Some("ready"), None) => {
            let ready: ReadyParams = serde_json::from_str(params())?;
            Ok(Inbound::Ready { node: ready.node.chars().take(40).collect() })
        }
        (Some("initializing"), None) => Ok(Inbound::Initializing),
        (Some("log"), None) => {
            let log: LogParams<'_> = serde_json::from_str(params())?;
            let level = match log.level.as_str() {
                "debug" => LogLevel::Debug,
                "warn" => LogLevel::Warn,
                "error" => LogLevel::Error,
                _ => LogLevel::Info,
            };
            // A float from a hostile worker: `as` saturates.
            Ok(Inbound::Log { id: log.id, level, text: log.text, at_ms: log.at as u64 })
        }
        (Some("fault"), None) => {
            let fault: FaultParams = serde_json::from_str(params())?;
            Ok(Inbound::Fault { failure: fault.failure.into(), exiting: fault.exiting })
        }
        (None, Some(id)) => {
            let body = match (envelope.result, envelope.error) {
                (Some(result), None) => Response::Result(result),
                (None, Some(error)) => {
                    let data = error.data.unwrap_or(ErrorData { phase: String::new(), failure: None });
                    let failure = data.failure.map(FunctionFailure::from);
                    Response::Error { message: cut(error.message), failure, phase: data.phase }
                }
                _ => return Err(serde_json::Error::custom("a response needs a result or an error")),
            };
            Ok(Inbound::Response { id, body })
        }
        _ => Err(serde_json::Error::custom("neither a known notification nor a response")),
    }
}

/// What a worker used for an invocation, by its own account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_time: Duration,
    pub memory_bytes: u64,
    pub peak_memory_bytes: u64,
}

#[derive(Deserialize)]
struct InvokeResult<'a> {
    #[serde(borrow)]
    outcome: WireOutcome<'a>,
    #[serde(default)]
    usage: WireUsage,
}

#[derive(Deserialize)]
struct WireOutcome<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    denied: Option<WireDenial<'a>>,
    #[serde(default)]
    failed: Option<WireFailure>,
}

#[derive(Deserialize)]
struct WireDenial<'a> {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    code: String,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

/// `null` is a value; only a field that is not there is `None`.
fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WireUsage {
    cpu_micros: f64,
    rss_bytes: f64,
    peak_rss_bytes: f64,
}

/// The result of `invoke`.
///
/// # Errors
/// It is not one.
pub fn parse_invoke_result(result: &RawValue) -> Result<(Outcome, Usage), serde_json::Error> {
    use serde::de::Error as _;
    let parsed: InvokeResult<'_> = serde_json::from_str(result.get())?;
    let outcome = match parsed.outcome {
        WireOutcome { failed: Some(failure), .. } => Outcome::Failed(failure.into()),
        WireOutcome { denied: Some(denied), .. } => Outcome::Denied(Denial {
            reason: cut(denied.reason),
            code: cut(denied.code),
            data: denied.data.map(|data| RawJson::trusted(data.get())),
        }),
        WireOutcome { value: Some(value), .. } => Outcome::Result(RawJson::trusted(value.get())),
        _ => return Err(serde_json::Error::custom("no outcome")),
    };
    let usage = Usage {
        cpu_time: Duration::from_micros(parsed.usage.cpu_micros as u64),
        memory_bytes: parsed.usage.rss_bytes as u64,
        peak_memory_bytes: parsed.usage.peak_rss_bytes as u64,
    };
    Ok((outcome, usage))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_result_passes_through_untouched() {
        let text = r#"{"jsonrpc":"2.0","id":"7","result":{"outcome":{"value":{"b":1.50,  "a":"\u00e4"}},"usage":{"cpuMicros":12.7}}}"#;
        let Ok(Inbound::Response { id, body: Response::Result(result) }) = parse(text.as_bytes()) else {
            panic!("a response");
        };
        assert_eq!(id, "7");
        let (outcome, usage) = parse_invoke_result(result).expect("a result");
        assert_eq!(outcome, Outcome::Result(RawJson::trusted(r#"{"b":1.50,  "a":"\u00e4"}"#)));
        assert_eq!(usage.cpu_time, Duration::from_micros(12));
    }

    #[test]
    fn a_null_value_is_a_result() {
        let raw = RawValue::from_string(r#"{"outcome":{"value":null}}"#.to_owned()).expect("json");
        let (outcome, _) = parse_invoke_result(&raw).expect("a result");
        assert_eq!(outcome, Outcome::Result(RawJson::trusted("null")));
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"id":"1"}"#,
            r#"{"id":"1","result":1,"error":{"message":"x"}}"#,
            r#"{"method":"invoke","params":{}}"#,
            r#"{"method":"ready","id":"1"}"#,
            r#"{"id":1,"result":{}}"#,
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
