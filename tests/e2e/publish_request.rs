//! Publish requests that say more than their files.

use std::time::Duration;

use bytes::Bytes;
use chatfn::proto;

use crate::harness::{LOGIN, SENT, TestApp, TestServer};

/// Built up function by function; what describes a function goes to the last one.
#[derive(Clone)]
pub struct Publish(pub proto::PublishVersionRequest);

impl Publish {
    /// The blocking trigger's function.
    pub fn login(app: &str, source: &str) -> Self {
        Self::app(app).function(LOGIN, source)
    }

    /// The non-blocking trigger's function.
    pub fn sent(app: &str, source: &str) -> Self {
        Self::app(app).function(SENT, source)
    }

    fn app(app: &str) -> Self {
        let spec = Some(proto::VersionSpec::default());
        Self(proto::PublishVersionRequest { app_id: app.to_owned(), spec, ..Default::default() })
    }

    pub fn function(mut self, trigger_type: &str, source: &str) -> Self {
        let code = Some(proto::function_spec::Code::Source(source.to_owned()));
        let function = proto::FunctionSpec { trigger_type: trigger_type.to_owned(), code, ..Default::default() };
        self.spec().functions.push(function);
        self
    }

    fn spec(&mut self) -> &mut proto::VersionSpec {
        self.0.spec.as_mut().expect("a spec")
    }

    fn last(&mut self) -> &mut proto::FunctionSpec {
        self.spec().functions.last_mut().expect("a function")
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.last().timeout = Some(timeout.try_into().expect("in range"));
        self
    }

    pub fn disabled(mut self) -> Self {
        self.last().disabled = true;
        self
    }

    pub fn batch(mut self, max_size: u32, max_wait: Duration) -> Self {
        let max_wait = max_wait.try_into().ok();
        self.last().batch = Some(proto::Batch { max_size, max_wait });
        self
    }

    pub fn retry(mut self, max_attempts: u32, initial_backoff: Duration) -> Self {
        let initial_backoff = Some(initial_backoff.try_into().expect("in range"));
        self.last().retry = Some(proto::RetryPolicy { max_attempts, initial_backoff, ..Default::default() });
        self
    }

    pub fn policy(mut self, policy: proto::FailurePolicy) -> Self {
        self.last().failure_policy = Some(policy);
        self
    }

    pub fn limits(mut self, change: impl FnOnce(&mut proto::Limits)) -> Self {
        change(self.spec().limits.get_or_insert_default());
        self
    }

    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.spec().environment.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn file(mut self, path: &str, content: &str) -> Self {
        self.spec().files.insert(path.to_owned(), Bytes::copy_from_slice(content.as_bytes()));
        self
    }

    pub fn initialization(mut self, source: &str) -> Self {
        self.spec().initialization_script = source.to_owned();
        self
    }

    /// Publishes; it must be fine.
    pub async fn on(self, server: &TestServer) -> TestApp {
        let app = server.app(&self.0.app_id);
        server.publish(self.0).await.expect("publishes");
        app
    }
}
