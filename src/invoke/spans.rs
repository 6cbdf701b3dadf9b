//! What the spans of one invocation tell: ids, names, numbers and kinds of failures; nothing that callers or tenants wrote.

use std::time::SystemTime;

use super::{Attempt, Error, Ran};
use crate::model::{AppId, InvocationId, Outcome, TraceContext, TriggerType};
use crate::pool::{self, Lease};
use crate::store::{self, Enqueued};
use crate::traces::{Kind, Recording, Span};
use crate::worker::Reply;

pub fn enqueuing(trace: &TraceContext, app: &AppId, trigger_type: &TriggerType) -> Span {
    let mut span = Span::within(trace, Kind::Producer, "enqueue");
    span.record(|span| {
        span.set("messaging.system", "chatfn").set("messaging.operation.type", "send");
        span.set("messaging.destination.name", trigger_type.as_str()).set("chatfn.app.id", app.as_str());
    });
    span
}

pub fn enqueued(span: &mut Span, queued: &Result<Enqueued, store::Error>) {
    span.record(|span| {
        match queued {
            Ok(queued) => {
                span.set("messaging.message.id", queued.event_id.to_string()).set("chatfn.duplicate", queued.duplicate)
            }
            Err(store::Error::QueueFull { .. }) => span.failed("QUEUE_FULL"),
            Err(_) => span.failed("NOT_STORED"),
        };
    });
}

/// An attempt at an event is one of the queue's consumer; a blocking one is a part of its call.
pub fn begun(attempt: &Attempt<'_>, id: InvocationId) -> Span {
    let (kind, name) = match attempt.event_id {
        Some(_) => (Kind::Consumer, "process"),
        None => (Kind::Internal, "invoke"),
    };
    let mut span = match &attempt.trace {
        Some(trace) if attempt.event_id.is_none() => Span::within(trace, kind, name),
        trace => Span::arriving(trace.clone(), kind, name),
    };
    span.record(|span| {
        let (version, function) = (&attempt.served.version, attempt.function);
        span.set("faas.name", function.name.as_str()).set("faas.version", version.number.to_string());
        span.set("faas.invocation_id", id.to_string()).set("chatfn.app.id", version.app.as_str());
        span.set("chatfn.trigger_type", function.trigger_type.as_str()).set("chatfn.attempt", attempt.number);
        let Some(event) = attempt.event_id else {
            span.set("faas.trigger", "other");
            return;
        };
        span.set("faas.trigger", "pubsub").set("messaging.system", "chatfn").set("messaging.operation.type", "process");
        span.set("messaging.destination.name", function.trigger_type.as_str());
        span.set("messaging.message.id", event.to_string());
        if !attempt.others.is_empty() {
            span.set("messaging.batch.message_count", attempt.others.len() as u64 + 1);
            for other in &attempt.others {
                span.link(other);
            }
        }
    });
    span
}

pub fn ended(span: &mut Span, ended: &Result<Ran, Error>) {
    span.record(|span| match ended {
        Ok(ran) => {
            span.set("faas.coldstart", ran.cold_start);
            outcome(span, &ran.outcome);
        }
        Err(err) => {
            span.failed(match err {
                Error::AtCapacity(_) => "AT_CAPACITY",
                Error::NoWorker(_) => "NO_WORKER",
                Error::Draining => "DRAINING",
                _ => "INTERNAL",
            });
        }
    });
}

/// The wait for a worker. Its last part, where it waited for one to start, is a span of its own.
pub fn waited(mut span: Span, lease: &Result<Lease, pool::Error>) {
    let cold = lease.as_ref().ok().and_then(Lease::cold);
    span.record(|span| {
        span.set("faas.coldstart", cold.is_some());
        let failure = match lease {
            Ok(_) => return,
            Err(pool::Error::QueueFull) => "QUEUE_FULL",
            Err(pool::Error::TimedOut) => "TIMED_OUT",
            Err(pool::Error::NotStarted(_)) => "NOT_STARTED",
            Err(pool::Error::Retired) => "RETIRED",
        };
        span.failed(failure);
    });
    if let Some(init) = cold {
        let now = SystemTime::now();
        let began = now.checked_sub(init).unwrap_or(now);
        Span::within(span.context(), Kind::Internal, "worker start").since(began).end_at(now);
    }
}

/// `None`: the worker ended before it began.
pub fn ran(span: &mut Span, reply: Option<&Reply>) {
    span.record(|span| match reply {
        Some(reply) => {
            outcome(span, &reply.outcome);
            let cpu = u64::try_from(reply.usage.cpu_time.as_micros()).unwrap_or(u64::MAX);
            span.set("chatfn.cpu_micros", cpu).set("chatfn.peak_memory_bytes", reply.usage.peak_memory_bytes);
        }
        None => {
            span.failed("NOT_BEGUN");
        }
    });
}

fn outcome(span: &mut Recording<'_>, outcome: &Outcome) {
    match outcome {
        Outcome::Result(_) => span.set("chatfn.outcome", "result"),
        Outcome::Denied(_) => span.set("chatfn.outcome", "denied"),
        Outcome::Failed(failure) => span.set("chatfn.outcome", "error").failed(failure.kind.as_str()),
    };
}
