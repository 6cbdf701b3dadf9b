//! Recorded invocations run against a version: on request, or as a gate that a publish has to pass.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Error, Publisher};
use crate::artifacts::Manifest;
use crate::model::{AppId, TraceContext, TriggerType, Version, VersionNumber};
use crate::publish::progress::Progress;
use crate::traces;
use crate::trial::{Recorded, Replay, Replayed, Trial};

/// Those that wait for a slow reader.
const QUEUED_MAX: usize = 16;
/// Told one by one; of the others only how many there are.
const TOLD_MAX: u32 = 20;

/// A gate: a version whose replay differs too much does not become READY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verification {
    /// The newest so many invocations.
    pub last: usize,
    pub changed_max: u32,
    pub allow_egress: bool,
}

#[derive(Debug)]
pub struct ReplayRequest {
    pub app: AppId,
    pub version: VersionNumber,
    pub last: usize,
    pub trigger_type: Option<TriggerType>,
    pub allow_egress: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplaySummary {
    pub replayed: u32,
    pub changed: u32,
}

impl ReplaySummary {
    fn add(&mut self, replayed: &Replayed) {
        self.replayed += 1;
        self.changed += u32::from(!replayed.differences.is_empty());
    }
}

impl Publisher {
    /// Replays recorded invocations; they come as they are done. Ends early when nobody reads them any more.
    pub fn replay(
        &self,
        request: ReplayRequest,
    ) -> (mpsc::Receiver<Replayed>, JoinHandle<Result<ReplaySummary, Error>>) {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        let (this, trace) = (self.clone(), traces::current());
        let task = self.shared.running.spawn(async move {
            let stop = this.shared.stop.clone();
            tokio::select! {
                result = this.replay_now(request, trace, sender) => result,
                () = stop.cancelled() => Err(Error::Draining),
            }
        });
        (receiver, task)
    }

    async fn replay_now(
        &self,
        request: ReplayRequest,
        trace: TraceContext,
        to: mpsc::Sender<Replayed>,
    ) -> Result<ReplaySummary, Error> {
        let _waiting = self.wait_in_line()?;
        let ReplayRequest { app, version, last, trigger_type, allow_egress } = request;
        let (version, environment, manifest, _files) = self.shared.serving.program(&app, version).await?;
        let trial = self.replay_trial(version, environment, &manifest, allow_egress, trace)?;
        let recorded = Recorded::new(self.shared.store.clone(), app, trigger_type, last);
        let result = tokio::select! {
            result = self.replay_to(&to, &trial, recorded) => result,
            () = to.closed() => Ok(ReplaySummary::default()), // Also while a function runs.
        };
        trial.end().await;
        result
    }

    async fn replay_to(
        &self,
        to: &mpsc::Sender<Replayed>,
        trial: &Trial,
        recorded: Recorded,
    ) -> Result<ReplaySummary, Error> {
        let mut summary = ReplaySummary::default();
        let mut replay = Replay::new(trial, &self.shared.catalogue, recorded);
        while let Some(one) = replay.next().await? {
            summary.add(&one);
            if to.send(one).await.is_err() {
                break;
            }
        }
        Ok(summary)
    }

    /// A publish's gate.
    pub(super) async fn check_replay(
        &self,
        version: &Version,
        environment: &BTreeMap<String, String>,
        manifest: &Manifest,
        verification: Verification,
        progress: &Progress,
    ) -> Result<(), Error> {
        let Verification { last, changed_max, allow_egress } = verification;
        progress.say("replay", &format!("running up to {last} recorded invocations"));
        let (environment, trace) = (environment.clone(), progress.trace());
        let trial = self.replay_trial(version.clone(), environment, manifest, allow_egress, trace)?;
        let recorded = Recorded::new(self.shared.store.clone(), version.app.clone(), None, last);
        let result = self.replay_and_tell(&trial, recorded, progress).await;
        trial.end().await;
        let (ReplaySummary { replayed, changed }, first) = result?;
        if changed > changed_max {
            return Err(Error::ReplayChanged { replayed, changed, max: changed_max, first });
        }
        progress.say("replay", &format!("{} of {replayed} came out the same", replayed - changed));
        Ok(())
    }

    /// With what the first one that differs differs in.
    async fn replay_and_tell(
        &self,
        trial: &Trial,
        recorded: Recorded,
        progress: &Progress,
    ) -> Result<(ReplaySummary, String), Error> {
        let (mut summary, mut first) = (ReplaySummary::default(), String::new());
        let mut replay = Replay::new(trial, &self.shared.catalogue, recorded);
        while let Some(one) = replay.next().await? {
            summary.add(&one);
            if one.differences.is_empty() || summary.changed > TOLD_MAX {
                continue;
            }
            let line = format!("{} {}: {}", one.trigger_type, one.invocation, one.differences.join(", "));
            progress.say("replay", &line);
            if first.is_empty() {
                first = line;
            }
        }
        Ok((summary, first))
    }

    fn replay_trial(
        &self,
        mut version: Version,
        environment: BTreeMap<String, String>,
        manifest: &Manifest,
        allow_egress: bool,
        trace: TraceContext,
    ) -> Result<Trial, Error> {
        let shared = &self.shared;
        if !allow_egress {
            if !shared.settings.confines_egress {
                return Err(Error::EgressNotConfined);
            }
            "none".clone_into(&mut version.limits.egress);
        }
        let wait_max = shared.settings.verify_timeout;
        Ok(Trial::start(&shared.serving, version, environment, manifest, 1, wait_max, trace))
    }
}
