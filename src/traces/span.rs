//! One span. It ends when it is dropped, and goes to the collector then.

use std::time::SystemTime;

use super::{Tracer, tracer};
use crate::model::{SpanId, TraceContext, TraceId};

/// Longest text of an attribute.
const TEXT_BYTES_MAX: usize = 256;
const ATTRIBUTES_MAX: usize = 32;
const LINKS_MAX: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call that came from elsewhere.
    Server,
    Internal,
    /// Puts something into the queue.
    Producer,
    /// Takes it out.
    Consumer,
}

/// An attribute's. Never what callers or tenants wrote: that may be anybody's secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number.try_into().unwrap_or(i64::MAX))
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// A part of a call, recorded or not.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Span {
    context: TraceContext,
    /// `None`: it is not recorded.
    open: Option<Box<Ended>>,
}

/// What was recorded.
#[derive(Debug)]
pub(super) struct Ended {
    pub context: TraceContext,
    /// Whether it is another process's.
    pub parent: Option<(SpanId, bool)>,
    pub kind: Kind,
    pub name: String,
    pub began: SystemTime,
    /// Its end: when it is dropped, where nobody says otherwise.
    pub ended: Option<SystemTime>,
    pub attributes: Vec<(&'static str, Value)>,
    pub links: Vec<TraceContext>,
    /// Kind of failure.
    pub failure: Option<String>,
}

impl Span {
    /// What a caller's trace goes on with, or the first of a new one.
    pub fn arriving(parent: Option<TraceContext>, kind: Kind, name: &str) -> Self {
        match (parent, tracer()) {
            (Some(parent), tracer) => Self::of(&parent, true, kind, name, tracer),
            (None, None) => Self { context: TraceContext::begin(false, false), open: None },
            (None, Some(tracer)) => {
                let mut context = TraceContext::begin(false, true);
                context.sampled = tracer.sampler.takes(context.trace_id);
                let open = context.sampled.then(|| Ended::new(context.clone(), None, kind, name));
                Self { context, open }
            }
        }
    }

    /// No span of ours: what comes of it, if anything does, goes on as it came.
    pub fn passing(given: Option<TraceContext>) -> Self {
        let context = given.unwrap_or_else(|| TraceContext::begin(false, false));
        Self { context, open: None }
    }

    /// A part of what this process does in a span of its own.
    pub fn within(parent: &TraceContext, kind: Kind, name: &str) -> Self {
        Self::of(parent, false, kind, name, tracer())
    }

    /// Where nothing is recorded, others go on with the span that was there before: one that is nowhere would only hide it.
    fn of(parent: &TraceContext, remote: bool, kind: Kind, name: &str, tracer: Option<&Tracer>) -> Self {
        if tracer.is_none() || !parent.sampled {
            return Self { context: parent.clone(), open: None };
        }
        let context = parent.child();
        let open = Ended::new(context.clone(), Some((parent.span_id, remote)), kind, name);
        Self { context, open: Some(open) }
    }

    /// What comes of it goes on with this.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Its trace, where others know it by that.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.context.onward.then_some(self.context.trace_id)
    }

    /// `fill` is called only if it is recorded.
    pub fn record(&mut self, fill: impl FnOnce(&mut Recording<'_>)) {
        if let Some(open) = &mut self.open {
            fill(&mut Recording(open));
        }
    }

    /// It began then, and not now.
    pub fn since(mut self, began: SystemTime) -> Self {
        if let Some(open) = &mut self.open {
            open.began = began;
        }
        self
    }

    /// It ended then.
    pub fn end_at(mut self, ended: SystemTime) {
        if let Some(open) = &mut self.open {
            open.ended = Some(ended);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(mut open), Some(tracer)) = (self.open.take(), tracer()) {
            let ended = open.ended.unwrap_or_else(SystemTime::now);
            open.ended = Some(ended.max(open.began)); // Clocks are set back at times.
            tracer.take(open);
        }
    }
}

/// A span that is recorded.
pub struct Recording<'a>(&'a mut Ended);

impl Recording<'_> {
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) -> &mut Self {
        if self.0.attributes.len() < ATTRIBUTES_MAX {
            self.0.attributes.push((key, value.into()));
        }
        self
    }

    /// It did not go well. `kind`: of a closed set.
    pub fn failed(&mut self, kind: &str) -> &mut Self {
        self.0.failure = Some(kind.to_owned());
        self.set("error.type", kind)
    }

    /// What else led to it.
    pub fn link(&mut self, context: &TraceContext) -> &mut Self {
        if self.0.links.len() < LINKS_MAX {
            self.0.links.push(context.clone());
        }
        self
    }
}

impl Ended {
    fn new(context: TraceContext, parent: Option<(SpanId, bool)>, kind: Kind, name: &str) -> Box<Self> {
        Box::new(Self {
            context,
            parent,
            kind,
            name: name[..name.floor_char_boundary(TEXT_BYTES_MAX)].to_owned(),
            began: SystemTime::now(),
            ended: None,
            attributes: Vec::new(),
            links: Vec::new(),
            failure: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No tracer is installed in this process.
    #[test]
    fn where_nothing_is_recorded_the_callers_context_goes_on_as_it_came() {
        let given = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None);
        let mut span = Span::arriving(given.clone(), Kind::Server, "a");
        span.record(|_| panic!("it is not recorded"));
        let inner = Span::within(span.context(), Kind::Internal, "b");
        assert_eq!(Some(inner.context()), given.as_ref());
        assert_eq!(inner.trace_id(), given.map(|given| given.trace_id));
    }

    #[test]
    fn a_trace_that_begins_here_unrecorded_is_kept_to_ourselves() {
        let (one, two) = (Span::arriving(None, Kind::Server, "a"), Span::arriving(None, Kind::Server, "a"));
        assert!(!one.context().onward && !one.context().sampled && one.trace_id().is_none());
        assert_ne!(one.context().trace_id, two.context().trace_id);
    }

    #[test]
    fn what_is_recorded_is_bounded() {
        let mut ended = Ended::new(TraceContext::begin(true, true), None, Kind::Server, &"é".repeat(200));
        assert_eq!(ended.name.len(), TEXT_BYTES_MAX);
        let mut recording = Recording(&mut ended);
        for _ in 0..200 {
            recording.set("text", "é".repeat(200)).link(&TraceContext::begin(true, true));
        }
        recording.set("last", 1u32);
        assert_eq!((ended.attributes.len(), ended.links.len()), (ATTRIBUTES_MAX, LINKS_MAX));
        assert_eq!(ended.attributes[0].1, Value::Text("é".repeat(128)));
        assert_eq!(Value::from(u64::MAX), Value::Number(i64::MAX));
    }
}
