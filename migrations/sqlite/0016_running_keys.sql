-- Blocking calls that run under an idempotency key, and the replica that runs each: others wait for its reply.
CREATE TABLE running_keys (
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    replica BIGINT NOT NULL,
    PRIMARY KEY (app_id, trigger_type, idempotency_key)
);
