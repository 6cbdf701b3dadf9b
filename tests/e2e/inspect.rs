//! What publishing leaves behind: in the version list, and in the data directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use chatfn::proto::publish_version_response::Event;
use chatfn::proto::{self, VersionState};
use tonic::{Code, Status};

use crate::harness::{TestApp, TestServer, reason, request};

/// A publish request for the blocking trigger's function.
pub fn login(app: &str, source: &str) -> proto::PublishVersionRequest {
    request(app, &[("functions/UserAttemptedStartSession.ts", source)])
}

/// The blocking trigger's function, always with this answer.
pub fn answering(app: &str, text: &str) -> proto::PublishVersionRequest {
    login(app, &format!("export const handleEvent = () => '{text}'"))
}

/// Changes a request's spec.
pub fn with(
    mut request: proto::PublishVersionRequest,
    change: impl FnOnce(&mut proto::VersionSpec),
) -> proto::PublishVersionRequest {
    change(request.spec.as_mut().expect("a spec"));
    request
}

/// Name → text, as the maps of a spec want them.
pub fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub fn messages(progress: &[proto::Progress], phase: &str) -> Vec<String> {
    progress.iter().filter(|step| step.phase == phase).map(|step| step.message.clone()).collect()
}

impl TestServer {
    /// All steps of a publish, however it ends.
    pub async fn publish_steps(
        &self,
        request: proto::PublishVersionRequest,
    ) -> (Vec<proto::Progress>, Result<proto::Version, Status>) {
        let mut progress = Vec::new();
        let mut steps = match self.versions().publish_version(request).await {
            Ok(steps) => steps.into_inner(),
            Err(status) => return (progress, Err(status)),
        };
        loop {
            match steps.message().await.map(|step| step.expect("a last step").event.expect("an event")) {
                Ok(Event::Progress(step)) => progress.push(step),
                Ok(Event::Version(version)) => return (progress, Ok(version)),
                Err(status) => return (progress, Err(status)),
            }
        }
    }

    /// Publishes what must be refused for this reason; returns the message.
    pub async fn refuse(&self, request: proto::PublishVersionRequest, code: Code, wanted: &str) -> String {
        let status = self.publish(request).await.expect_err(wanted);
        assert_eq!(reason(&status), (code, wanted.to_owned()), "{}; the log: {:#?}", status.message(), self.log());
        status.message().to_owned()
    }

    pub fn listed(&self, directory: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.data_directory().join(directory)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    pub fn data_directory(&self) -> PathBuf {
        self.data().join("data")
    }

    pub fn layers(&self, app: &str) -> BTreeSet<String> {
        self.listed(&format!("layers/{app}"))
    }

    pub fn artifacts(&self, app: &str) -> BTreeSet<String> {
        self.listed(&format!("artifacts/{app}"))
    }

    /// Of builds; a worker has its own temporary directory while it lives.
    pub fn unfinished(&self) -> BTreeSet<String> {
        self.listed("tmp").into_iter().filter(|name| !name.starts_with("worker-")).collect()
    }

    /// Nothing unfinished, and of the app only the files that its READY versions run.
    pub async fn assert_tidy(&self, app: &str) {
        assert_eq!(self.unfinished(), BTreeSet::new());
        let versions = self.app(app).versions().await;
        let building: Vec<_> = versions.iter().filter(|version| version.state() == VersionState::Building).collect();
        assert!(building.is_empty(), "{building:?}");
        let ready = || versions.iter().filter(|version| version.state() == VersionState::Ready);
        let digest = |version: &proto::Version| version.digest.trim_start_matches("blake3:").to_owned();
        assert_eq!(self.artifacts(app), ready().map(digest).collect());
        let layers = ready().map(|version| version.layer.clone()).filter(|layer| !layer.is_empty());
        assert_eq!(self.layers(app), layers.collect());
    }

    /// The publish that just failed left a FAILED row with this in its reason, no file, and the active version serving.
    pub async fn assert_failed_and_tidy(&self, app: &str, why: &str) {
        let newest = self.app(app).versions().await.remove(0);
        assert_eq!(newest.state(), VersionState::Failed);
        assert!(newest.failure.contains(why), "{} in {}", why, newest.failure);
        assert!(!newest.active);
        self.assert_tidy(app).await;
        self.assert_serves(app, 1).await;
    }

    pub async fn assert_serves(&self, app: &str, version: u64) {
        let answer = self.app(app).login("jane").await;
        assert_eq!(answer.version, version);
        assert!(matches!(answer.outcome, Some(proto::invoke_response::Outcome::Result(_))), "{answer:?}");
    }
}

impl TestApp {
    fn client(&self) -> proto::version_service_client::VersionServiceClient<tonic::transport::Channel> {
        proto::version_service_client::VersionServiceClient::new(self.channel())
    }

    /// Newest first.
    pub async fn versions(&self) -> Vec<proto::Version> {
        let request = proto::ListVersionsRequest { app_id: self.id.clone(), page_size: 1000, ..Default::default() };
        self.client().list_versions(request).await.expect("the versions").into_inner().versions
    }

    /// Number → state.
    pub async fn states(&self) -> BTreeMap<u64, VersionState> {
        self.versions().await.iter().map(|version| (version.number, version.state())).collect()
    }

    pub async fn version(&self, version: u64) -> Result<proto::Version, Status> {
        let request = proto::GetVersionRequest { app_id: self.id.clone(), version };
        Ok(self.client().get_version(request).await?.into_inner().version.expect("a version"))
    }

    pub async fn activate(&self, version: u64) -> Result<proto::Version, Status> {
        let request = proto::ActivateVersionRequest { app_id: self.id.clone(), version };
        Ok(self.client().activate_version(request).await?.into_inner().version.expect("a version"))
    }

    pub async fn delete(&self, version: u64) -> Result<(), Status> {
        let request = proto::DeleteVersionRequest { app_id: self.id.clone(), version };
        self.client().delete_version(request).await.map(|_| ())
    }
}
