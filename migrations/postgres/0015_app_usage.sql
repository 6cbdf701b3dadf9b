-- NULL: the service's default.
ALTER TABLE apps ADD COLUMN quota_per_day BIGINT;

-- How often apps with a quota were called, by all replicas.
CREATE TABLE app_usage (
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    -- Since 1970-01-01, UTC.
    day BIGINT NOT NULL,
    invocations BIGINT NOT NULL,
    PRIMARY KEY (app_id, day)
);
