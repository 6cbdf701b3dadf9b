-- Times are milliseconds since 1970, spans say their unit, ids and JSON are text. What differs from PostgreSQL: the `seq`
-- columns (there GENERATED ALWAYS AS IDENTITY) and the collation of text keys (there "C").

CREATE TABLE apps (
    id TEXT NOT NULL PRIMARY KEY,
    active_version BIGINT,
    -- Only grows, so that a deleted version's number never comes back.
    last_version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    description TEXT NOT NULL,
    history_retention_ms BIGINT
);

CREATE TABLE versions (
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    state BIGINT NOT NULL, -- 0 BUILDING, 1 READY, 2 FAILED
    digest TEXT NOT NULL,
    functions_json TEXT NOT NULL,
    dependencies_json TEXT NOT NULL,
    environment_names_json TEXT NOT NULL,
    limits_json TEXT NOT NULL,
    node_version TEXT NOT NULL,
    layer TEXT NOT NULL,
    layer_size_bytes BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    has_initialization_script BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    failure TEXT NOT NULL,
    deps_digest TEXT NOT NULL,
    publish_key TEXT,
    -- Of the request that the key came with; NULL where there was none.
    publish_digest TEXT,
    PRIMARY KEY (app_id, number)
);
CREATE INDEX versions_by_deps ON versions (app_id, deps_digest, number);
CREATE INDEX versions_by_publish_key ON versions (app_id, publish_key, number) WHERE publish_key IS NOT NULL;

-- Apart from `versions`: values are secrets, and no list of versions needs them.
CREATE TABLE environments (
    app_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (app_id, version, name),
    FOREIGN KEY (app_id, version) REFERENCES versions (app_id, number) ON DELETE CASCADE
);

CREATE TABLE events (
    -- The order of arrival. Not the id: its clock may step back.
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT NOT NULL,
    version BIGINT NOT NULL,
    payload_json TEXT NOT NULL,
    ordering_key TEXT,
    idempotency_key TEXT,
    state BIGINT NOT NULL, -- 0 QUEUED, 1 RUNNING, 2 DONE, 3 SKIPPED, 4 DEAD
    attempt BIGINT NOT NULL,
    -- QUEUED: when it may be claimed. RUNNING: when its claim ends, so when the next may claim it.
    due_at BIGINT NOT NULL,
    claim_id BIGINT,
    enqueued_at BIGINT NOT NULL,
    finished_at BIGINT,
    reason TEXT,
    error TEXT
);
CREATE INDEX events_due ON events (due_at, seq) WHERE state < 2;
CREATE INDEX events_turn ON events (app_id, trigger_type, ordering_key, seq) WHERE ordering_key IS NOT NULL AND state < 2;
CREATE INDEX events_in_flight ON events (app_id, trigger_type, ordering_key) WHERE state = 1;
CREATE INDEX events_by_app ON events (app_id, state, seq);
CREATE INDEX events_finished ON events (finished_at) WHERE finished_at IS NOT NULL AND state < 4;
CREATE UNIQUE INDEX events_by_idempotency_key ON events (app_id, trigger_type, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE invocations (
    id TEXT NOT NULL PRIMARY KEY,
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT NOT NULL,
    version BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    event_id TEXT,
    event_json TEXT NOT NULL,
    status BIGINT NOT NULL, -- 0 RUNNING, 1 SUCCEEDED, 2 FAILED
    -- SUCCEEDED has either a result or a denial; FAILED has an error.
    result_json TEXT,
    denied_reason TEXT,
    denied_code TEXT,
    denied_json TEXT,
    error_json TEXT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    cold_start BOOLEAN NOT NULL,
    queue_us BIGINT NOT NULL,
    init_us BIGINT NOT NULL,
    run_us BIGINT NOT NULL,
    cpu_us BIGINT NOT NULL,
    peak_memory_bytes BIGINT NOT NULL
);
CREATE INDEX invocations_by_app ON invocations (app_id, id);
CREATE INDEX invocations_by_age ON invocations (app_id, created_at);
CREATE INDEX invocations_by_event ON invocations (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX invocations_running ON invocations (id) WHERE status = 0;

CREATE TABLE logs (
    seq INTEGER PRIMARY KEY,
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    trigger_type TEXT,
    invocation_id TEXT,
    at BIGINT NOT NULL,
    level BIGINT NOT NULL, -- 0 DEBUG, 1 INFO, 2 WARN, 3 ERROR
    source BIGINT NOT NULL, -- 0 console, 1 stdout, 2 stderr, 3 system
    text TEXT NOT NULL
);
CREATE INDEX logs_by_app ON logs (app_id, seq);
CREATE INDEX logs_by_age ON logs (app_id, at);
CREATE INDEX logs_by_invocation ON logs (invocation_id, seq) WHERE invocation_id IS NOT NULL;

CREATE TABLE replies (
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    reply TEXT NOT NULL,
    recorded_at BIGINT NOT NULL,
    PRIMARY KEY (app_id, trigger_type, idempotency_key)
);
CREATE INDEX replies_by_age ON replies (recorded_at);
