-- What values are encrypted with: one key for each app, itself encrypted with one of the operator's.
CREATE TABLE data_keys (
    app_id TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES apps (id) ON DELETE CASCADE,
    -- Random; the values name it.
    id TEXT COLLATE "C" NOT NULL UNIQUE,
    -- Of the operator's key in `wrapped`.
    master_key_id TEXT COLLATE "C" NOT NULL,
    wrapped TEXT NOT NULL
);
CREATE INDEX data_keys_by_master ON data_keys (master_key_id, app_id);

-- The data key of `value`. NULL: it lies there as it is, written where no keys were configured.
ALTER TABLE environments ADD COLUMN data_key_id TEXT;
CREATE INDEX environments_in_the_clear ON environments (app_id, version, name) WHERE data_key_id IS NULL;

-- Instead of `value`, which is empty then.
ALTER TABLE service_keys ADD COLUMN wrapped TEXT;
