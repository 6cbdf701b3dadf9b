CREATE TABLE credentials (
    -- The order of creation.
    seq INTEGER PRIMARY KEY,
    client_id TEXT NOT NULL UNIQUE,
    -- NULL: an operator's, for all apps.
    app_id TEXT REFERENCES apps (id) ON DELETE CASCADE,
    scopes TEXT NOT NULL, -- With spaces between them.
    -- Of 256 random bits: nobody guesses their way back from it.
    secret_sha256 BLOB NOT NULL UNIQUE,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX credentials_by_app ON credentials (app_id, seq);

-- Keys of the service's own, made when they are first needed.
CREATE TABLE service_keys (
    name TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
);
