-- What migrations/sqlite holds up to 0007, and 0013. Times are milliseconds since 1970, spans say their unit, ids and JSON are text.
-- Collation "C": ids are compared byte by byte, as SQLite does, whatever the database was created with.

CREATE TABLE replicas (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL
);

CREATE TABLE apps (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    active_version BIGINT,
    last_version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    description TEXT NOT NULL,
    history_retention_ms BIGINT,
    activation BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE versions (
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    state BIGINT NOT NULL, -- 0 BUILDING, 1 READY, 2 FAILED
    digest TEXT COLLATE "C" NOT NULL,
    functions_json TEXT NOT NULL,
    dependencies_json TEXT NOT NULL,
    environment_names_json TEXT NOT NULL,
    limits_json TEXT NOT NULL,
    node_version TEXT NOT NULL,
    layer TEXT COLLATE "C" NOT NULL,
    layer_size_bytes BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    has_initialization_script BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    failure TEXT NOT NULL,
    deps_digest TEXT COLLATE "C" NOT NULL,
    publish_key TEXT COLLATE "C",
    publish_digest TEXT,
    replica BIGINT,
    PRIMARY KEY (app_id, number)
);
CREATE INDEX versions_by_deps ON versions (app_id, deps_digest, number);
CREATE INDEX versions_by_publish_key ON versions (app_id, publish_key, number) WHERE publish_key IS NOT NULL;
CREATE INDEX versions_building ON versions (app_id, number) WHERE state = 0;

CREATE TABLE environments (
    app_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (app_id, version, name),
    FOREIGN KEY (app_id, version) REFERENCES versions (app_id, number) ON DELETE CASCADE
);

CREATE TABLE events (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL UNIQUE,
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    payload_json TEXT NOT NULL,
    ordering_key TEXT COLLATE "C",
    idempotency_key TEXT COLLATE "C",
    state BIGINT NOT NULL, -- 0 QUEUED, 1 RUNNING, 2 DONE, 3 SKIPPED, 4 DEAD, 5 WAITING, 6 SCHEDULED, 7 TAKEN
    attempt BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    claim_id BIGINT,
    enqueued_at BIGINT NOT NULL,
    finished_at BIGINT,
    reason TEXT,
    error TEXT,
    place BIGINT NOT NULL DEFAULT 0,
    hops BIGINT NOT NULL DEFAULT 0,
    claimed_at BIGINT,
    attempts_before BIGINT NOT NULL DEFAULT 0,
    since BIGINT NOT NULL DEFAULT 0,
    batch_max BIGINT,
    batch_wait_ms BIGINT,
    replica BIGINT
)
-- Rows are updated twice or more in a short life: room for it on their own page.
WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX events_by_app ON events (app_id, state, seq);
CREATE INDEX events_by_age ON events (app_id, finished_at) WHERE finished_at IS NOT NULL AND state < 4;
CREATE INDEX events_due ON events (app_id, due_at, seq) WHERE state < 2;
CREATE UNIQUE INDEX events_head ON events (app_id, trigger_type, ordering_key) WHERE state < 2 AND ordering_key IS NOT NULL;
CREATE INDEX events_waiting ON events (app_id, trigger_type, ordering_key, place, seq) WHERE state = 5;
CREATE INDEX events_scheduled ON events (due_at, seq) WHERE state = 6;
CREATE INDEX events_dead ON events (finished_at) WHERE state = 4;
CREATE INDEX events_taken ON events (app_id, trigger_type, ordering_key) WHERE state = 7;
CREATE INDEX events_claimed ON events (replica) WHERE state IN (1, 7);
CREATE UNIQUE INDEX events_by_idempotency_key ON events (app_id, trigger_type, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE TABLE attempts (
    event_seq BIGINT NOT NULL REFERENCES events (seq) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    invocation_id TEXT COLLATE "C",
    error_json TEXT,
    started_at BIGINT NOT NULL,
    finished_at BIGINT NOT NULL,
    PRIMARY KEY (event_seq, number)
);

CREATE TABLE invocations (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- As SQLite numbers rows.
    rowid BIGINT GENERATED ALWAYS AS IDENTITY UNIQUE,
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    event_id TEXT COLLATE "C",
    event_json TEXT NOT NULL,
    status BIGINT NOT NULL, -- 0 RUNNING, 1 SUCCEEDED, 2 FAILED
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
    peak_memory_bytes BIGINT NOT NULL,
    replica BIGINT
);
CREATE INDEX invocations_by_app ON invocations (app_id, id);
CREATE INDEX invocations_by_age ON invocations (app_id, created_at);
CREATE INDEX invocations_by_event ON invocations (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX invocations_running ON invocations (id) WHERE status = 0;
CREATE INDEX invocations_by_function ON invocations (app_id, trigger_type, id);

CREATE TABLE logs (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    trigger_type TEXT COLLATE "C",
    invocation_id TEXT COLLATE "C",
    at BIGINT NOT NULL,
    level BIGINT NOT NULL, -- 0 DEBUG, 1 INFO, 2 WARN, 3 ERROR
    source BIGINT NOT NULL, -- 0 console, 1 stdout, 2 stderr, 3 system
    text TEXT NOT NULL
);
CREATE INDEX logs_by_app ON logs (app_id, seq);
CREATE INDEX logs_by_age ON logs (app_id, at);
CREATE INDEX logs_by_invocation ON logs (invocation_id, seq) WHERE invocation_id IS NOT NULL;

CREATE TABLE replies (
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT COLLATE "C" NOT NULL,
    idempotency_key TEXT COLLATE "C" NOT NULL,
    reply TEXT NOT NULL,
    recorded_at BIGINT NOT NULL,
    PRIMARY KEY (app_id, trigger_type, idempotency_key)
);
CREATE INDEX replies_by_age ON replies (recorded_at);

CREATE TABLE credentials (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client_id TEXT COLLATE "C" NOT NULL UNIQUE,
    -- NULL: an operator's, for all apps.
    app_id TEXT COLLATE "C" REFERENCES apps (id) ON DELETE CASCADE,
    scopes TEXT NOT NULL, -- With spaces between them.
    secret_sha256 BYTEA NOT NULL UNIQUE,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX credentials_by_app ON credentials (app_id, seq);

CREATE TABLE service_keys (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE functions (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    last_number BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (app_id, trigger_type)
);

CREATE TABLE function_versions (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    app_id TEXT COLLATE "C" NOT NULL,
    function_id BIGINT NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (function_id, number)
);
CREATE INDEX function_versions_by_app ON function_versions (app_id);

CREATE TABLE function_bindings (
    app_id TEXT COLLATE "C" NOT NULL,
    app_version BIGINT NOT NULL,
    function_id BIGINT NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    function_version_id BIGINT NOT NULL REFERENCES function_versions (id) ON DELETE CASCADE,
    PRIMARY KEY (app_id, app_version, function_id),
    FOREIGN KEY (app_id, app_version) REFERENCES versions (app_id, number) ON DELETE CASCADE
);
CREATE INDEX function_bindings_by_function ON function_bindings (function_id, app_version);
CREATE INDEX function_bindings_by_version ON function_bindings (function_version_id);
