//! What is tried without being published: a draft of a function, run against the runtime that serves; the types of sources.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::draft::draft as draft_of;
use super::{Error, Publisher};
use crate::model::{
    AppId, Decision, Function, InvocationId, LogLine, RawJson, Timings, TraceContext, TriggerType, VersionNumber,
    decide,
};
use crate::publish::changes::{Changes, is_of};
use crate::publish::functions::{Code, FunctionDecl};
use crate::publish::progress::Progress;
use crate::publish::turns::Build;
use crate::publish::{InvalidSpec, ProjectSpec, TypeCheck, TypeCheckError, TypeReport};
use crate::serving;
use crate::traces;
use crate::trial::{Event, LINES_MAX, Trial, Tried};

/// A function that nobody has published yet.
#[derive(Debug)]
pub struct Draft {
    pub app: AppId,
    pub trigger_type: TriggerType,
    /// Empty: the function as it is.
    pub source: String,
    pub language: String,
    /// Checked by the caller.
    pub event: RawJson,
}

/// What came of it.
#[derive(Debug)]
pub struct Rehearsed {
    /// Whose runtime it was; `None`: the app has no version yet.
    pub version: Option<VersionNumber>,
    pub decision: Decision,
    pub timings: Timings,
    pub cpu_time: Duration,
    pub peak_memory_bytes: u64,
    pub lines: Vec<LogLine>,
    pub warnings: Vec<String>,
}

impl Publisher {
    /// Runs a draft in a worker of its own. Nothing is published or recorded.
    ///
    /// # Errors
    /// As a publish, for what is wrong with the draft; and where there is no worker.
    ///
    /// # Cancel safety
    /// Dropping the future ends it, soon; what it leaves is swept.
    pub async fn rehearse(&self, draft: Draft) -> Result<Rehearsed, Error> {
        let (this, gone) = (self.clone(), CancellationToken::new());
        let _hangs_up = gone.clone().drop_guard();
        let trace = traces::current();
        // It leaves files to be swept.
        self.detached(async move { Box::pin(this.rehearse_now(draft, trace, &gone)).await }).await
    }

    /// The type errors of sources that nobody has published. Nothing is kept.
    ///
    /// # Errors
    /// As a publish, up to the installation; and what keeps the types from being checked.
    ///
    /// # Cancel safety
    /// As [`Publisher::rehearse`].
    pub async fn check_sources(&self, app: AppId, spec: ProjectSpec) -> Result<TypeReport, Error> {
        let (this, gone) = (self.clone(), CancellationToken::new());
        let _hangs_up = gone.clone().drop_guard();
        let trace = traces::current();
        self.detached(async move { this.check_sources_now(&app, spec, trace, &gone).await }).await
    }

    async fn check_sources_now(
        &self,
        app: &AppId,
        spec: ProjectSpec,
        trace: TraceContext,
        gone: &CancellationToken,
    ) -> Result<TypeReport, Error> {
        let _waiting = self.wait_in_line()?;
        let (progress, _nobody_watches) = Progress::new(trace);
        let build = self.begin_aside(app).await?;
        // On the heap: it is large, and it travels.
        let work = Box::pin(async {
            let (project, _) = self.compile(spec, false, &progress).await?;
            let mut version = draft_of(app, &project, self.shared.installer.node_version());
            if let Some(layer) = self.install(&project, app, &build, &progress).await? {
                version.layer = layer.key;
            }
            match self.check_types(&project, &version, TypeCheck::Error, &progress).await {
                Ok(()) => Ok(TypeReport::default()),
                Err(Error::TypeCheck(TypeCheckError::Types(report))) => Ok(report),
                Err(err) => Err(err),
            }
        });
        let result = self.until_stopped(&build, VersionNumber(0), unless(gone, work)).await;
        self.sweep_after(app, VersionNumber(0), &build).await;
        result
    }

    /// A build that becomes no version, of an app that there is.
    async fn begin_aside(&self, app: &AppId) -> Result<Build, Error> {
        let state = self.shared.turns.of(app);
        let _turn = state.turn().await;
        // In the turn: no deletion comes in between.
        if self.shared.store.app(app).await?.is_none() {
            return Err(serving::Error::UnknownApp(app.to_string()).into());
        }
        Ok(state.begin_build())
    }

    async fn rehearse_now(
        &self,
        draft: Draft,
        trace: TraceContext,
        gone: &CancellationToken,
    ) -> Result<Rehearsed, Error> {
        let shared = &self.shared;
        let _waiting = self.wait_in_line()?;
        let app = &draft.app;
        if shared.store.app(app).await?.is_none() {
            return Err(serving::Error::UnknownApp(app.to_string()).into());
        }
        let newest = shared.store.newest_version(app).await?;
        let (start, mut spec) = self.changed(app, Changes::default(), newest).await?;
        self.put_draft(&mut spec, &draft);
        let (progress, _nobody_watches) = Progress::new(trace.clone());
        let (project, built) = self.compile(spec, true, &progress).await?;
        let function = project.functions.iter().find(|function| function.trigger_type == draft.trigger_type).cloned();
        let function = function.ok_or_else(|| InvalidSpec::EntryNotFound {
            trigger_type: draft.trigger_type.to_string(),
            problem: "the active version has no such function: give a source".to_owned(),
        })?;
        let mut version = draft_of(app, &project, shared.installer.node_version());
        version.number = start.unwrap_or(VersionNumber(0));
        let build = self.begin_aside(app).await?;
        let work = async {
            let manifest = self.assemble(&project, &built, &mut version, &build, &progress).await?;
            let environment = project.environment.clone();
            let wait_max = shared.settings.verify_timeout;
            progress.end();
            let (serving, version) = (&shared.serving, version.clone());
            let trial = Trial::start(serving, version, environment, &manifest, LINES_MAX, wait_max, trace);
            let event = Event { invocation: InvocationId::new(), attempt: 1, json: draft.event.clone() };
            let tried = trial.run(&function, event).await;
            let lines = trial.end().await;
            Ok(rehearsed(&function, tried?, lines))
        };
        let number = start.unwrap_or(VersionNumber(0));
        let result = Box::pin(self.until_stopped(&build, number, unless(gone, work))).await;
        self.sweep_after(app, number, &build).await;
        result.map(|rehearsed| Rehearsed { version: start, warnings: project.warnings, ..rehearsed })
    }

    /// In the place of the function that is there, with its settings. A draft is run although the function is disabled.
    fn put_draft(&self, spec: &mut ProjectSpec, draft: &Draft) {
        let catalogue = &self.shared.catalogue;
        let found = spec.functions.iter().position(|of| is_of(catalogue, &of.trigger_type, &draft.trigger_type));
        let mut function = found.map_or_else(FunctionDecl::default, |at| spec.functions.remove(at));
        function.trigger_type = draft.trigger_type.to_string();
        function.disabled = false;
        if !draft.source.is_empty() {
            crate::publish::changes::remove_files(&mut spec.files, catalogue, &draft.trigger_type, None);
            function.code = Some(Code::Source(draft.source.clone()));
            function.language.clone_from(&draft.language);
        }
        spec.functions.push(function);
    }
}

/// Work for a caller that may hang up.
async fn unless<T>(gone: &CancellationToken, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::select! {
        result = work => result,
        () = gone.cancelled() => Err(Error::Closed), // Nobody hears it.
    }
}

fn rehearsed(function: &Function, tried: Tried, lines: Vec<LogLine>) -> Rehearsed {
    Rehearsed {
        version: None,
        decision: decide(&function.failure_policy, tried.outcome),
        timings: tried.timings,
        cpu_time: tried.cpu_time,
        peak_memory_bytes: tried.peak_memory_bytes,
        lines,
        warnings: Vec::new(),
    }
}
