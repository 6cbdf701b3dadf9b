//! Why a publish, or a change to the versions that there are, is refused or fails.

use crate::artifacts::{self, BlobsError};
use crate::model::{AppId, FunctionFailure, VersionNumber};
use crate::publish::InvalidSpec;
use crate::publish::npm::InstallError;
use crate::publish::typecheck;
use crate::serving;
use crate::store::{self, BeginError};
use crate::trial;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Invalid(#[from] InvalidSpec),
    #[error("another version was published since: the newest is {newest}")]
    BaseMoved { newest: VersionNumber },
    #[error(
        "this idempotency_key was used for another request, which became version {0}: use a new key for new content"
    )]
    KeyReused(VersionNumber),
    #[error(
        "app {other} is served here, and nothing keeps a second one from it (isolation.single_tenant; see `chatfn doctor`)"
    )]
    SingleTenant { other: AppId },
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    TypeCheck(#[from] typecheck::Error),
    /// The candidate does not load.
    #[error("verification failed: {0}")]
    Verify(FunctionFailure),
    #[error("no worker was free: {0}")]
    AtCapacity(String),
    /// The machine or the sandbox failed, not the tenant's code.
    #[error("no worker could be started: {0}")]
    NoWorker(String),
    /// Its pool retired meanwhile.
    #[error("the version was unloaded meanwhile: try again")]
    Closed,
    #[error(
        "{changed} of {replayed} recorded invocations came out otherwise, and verification.max_changed is {max}: {first}"
    )]
    ReplayChanged { replayed: u32, changed: u32, max: u32, first: String },
    /// Nothing keeps a replay's requests in.
    #[error(
        "nothing here keeps a function from the network (see `chatfn doctor`, layer network), so a replay could send what it should not: allow_egress accepts that"
    )]
    EgressNotConfined,
    #[error(
        "version {0} has no sources to start from (it is not READY, or it was published before they were kept): publish the whole project once"
    )]
    NoSources(VersionNumber),
    #[error("other publishes kept coming while the changes were made, {tries} times: try again")]
    ChangesOvertaken { tries: u32 },
    /// Seen by whoever makes changes: they are made again.
    #[error("another version was activated meanwhile")]
    ActiveMoved,
    #[error("the app was deleted while version {0} was being built")]
    AppDeleted(VersionNumber),
    #[error("version {0} is active")]
    Active(VersionNumber),
    #[error("version {0} is being built")]
    Building(VersionNumber),
    #[error(
        "version {0} still runs invocations that began before another was activated: delete it when they have ended"
    )]
    StillRunning(VersionNumber),
    #[error("{events} queued events still need version {number}")]
    NeededByEvents { number: VersionNumber, events: u64 },
    #[error(transparent)]
    Version(#[from] serving::Error),
    #[error("too many publishes wait already")]
    TooMany,
    #[error("the service is shutting down")]
    Draining,
    #[error("the disk is full: {0}")]
    DiskFull(String),
    #[error("write the store: {0}")]
    Store(#[from] store::Error),
    #[error("{0}")]
    Artifact(String),
    #[error(transparent)]
    Blobs(BlobsError),
    #[error("a publish's task failed")]
    Internal,
}

impl Error {
    /// Stable, UPPER_SNAKE: what clients and the audit log know it by.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(err) => err.reason(),
            Self::BaseMoved { .. } => "BASE_VERSION_MOVED",
            Self::KeyReused(_) => "IDEMPOTENCY_KEY_REUSED",
            Self::SingleTenant { .. } => "SINGLE_TENANT",
            Self::Install(err) => err.reason(),
            Self::TypeCheck(err) => err.reason(),
            Self::Verify(_) => "VERIFICATION_FAILED",
            Self::AtCapacity(_) => "AT_CAPACITY",
            Self::NoWorker(_) => "WORKER_UNAVAILABLE",
            Self::Closed => "VERSION_UNLOADED",
            Self::ReplayChanged { .. } => "REPLAY_CHANGED",
            Self::EgressNotConfined => "EGRESS_NOT_CONFINED",
            Self::NoSources(_) => "VERSION_HAS_NO_SOURCES",
            Self::ChangesOvertaken { .. } => "CHANGES_OVERTAKEN",
            Self::ActiveMoved => "ACTIVE_VERSION_MOVED",
            Self::AppDeleted(_) => "APP_DELETED",
            Self::Active(_) => "VERSION_ACTIVE",
            Self::Building(_) => "VERSION_BUILDING",
            Self::StillRunning(_) => "VERSION_STILL_RUNNING",
            Self::NeededByEvents { .. } => "VERSION_NEEDED_BY_EVENTS",
            Self::Version(err) => err.reason(),
            Self::TooMany => "TOO_MANY_PUBLISHES",
            Self::Draining => "DRAINING",
            Self::DiskFull(_) => "DISK_FULL",
            Self::Store(err) => err.reason(),
            Self::Blobs(err) => err.reason(),
            Self::Artifact(_) | Self::Internal => "INTERNAL",
        }
    }

    /// Whose fault it is, as the metrics tell it.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Invalid(_)
            | Self::BaseMoved { .. }
            | Self::KeyReused(_)
            | Self::SingleTenant { .. }
            | Self::EgressNotConfined
            | Self::NoSources(_)
            | Self::ActiveMoved
            | Self::AppDeleted(_)
            | Self::Active(_)
            | Self::Building(_)
            | Self::StillRunning(_)
            | Self::NeededByEvents { .. }
            | Self::Version(
                serving::Error::UnknownApp(_) | serving::Error::UnknownVersion { .. } | serving::Error::NotReady { .. },
            ) => "refused",
            Self::TypeCheck(typecheck::Error::Types(_)) => "refused",
            Self::Install(InstallError::RegistryAway { .. } | InstallError::Broken(_)) => "unavailable",
            Self::Install(_) | Self::TypeCheck(_) | Self::Verify(_) | Self::ReplayChanged { .. } => "failed",
            Self::AtCapacity(_)
            | Self::NoWorker(_)
            | Self::Closed
            | Self::ChangesOvertaken { .. }
            | Self::Version(serving::Error::Store(_) | serving::Error::Artifact(_) | serving::Error::Blobs(_))
            | Self::TooMany
            | Self::Draining
            | Self::DiskFull(_)
            | Self::Store(_)
            | Self::Artifact(_)
            | Self::Blobs(_)
            | Self::Internal => "unavailable",
        }
    }
}

impl From<artifacts::Error> for Error {
    fn from(err: artifacts::Error) -> Self {
        if err.is_disk_full() { Self::DiskFull(err.to_string()) } else { Self::Artifact(err.to_string()) }
    }
}

impl From<BlobsError> for Error {
    fn from(err: BlobsError) -> Self {
        match err {
            BlobsError::Local(err) if err.is_disk_full() => Self::DiskFull(err.to_string()),
            err => Self::Blobs(err),
        }
    }
}

impl From<BeginError> for Error {
    fn from(err: BeginError) -> Self {
        match err {
            BeginError::BaseMoved { newest } => Self::BaseMoved { newest },
            BeginError::NotBuilding(number) => Self::Artifact(format!("version {number} is not being built any more")),
            BeginError::Store(err) => Self::Store(err),
        }
    }
}

impl From<trial::Error> for Error {
    fn from(err: trial::Error) -> Self {
        match err {
            trial::Error::AtCapacity(message) => Self::AtCapacity(message),
            trial::Error::NoWorker(message) => Self::NoWorker(message),
            trial::Error::Closed => Self::Closed,
            trial::Error::Store(err) => Self::Store(err),
        }
    }
}
