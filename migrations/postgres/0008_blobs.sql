-- Where an app's artifacts and layers lie in the artifact store: the packed file that each is unpacked from.
CREATE TABLE blobs (
    app_id TEXT COLLATE "C" NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    kind TEXT COLLATE "C" NOT NULL, -- artifact or layer
    name TEXT COLLATE "C" NOT NULL, -- versions.digest without its `blake3:`, or versions.layer
    hash TEXT COLLATE "C" NOT NULL, -- blake3 of the packed bytes
    size_bytes BIGINT NOT NULL,
    unpacked_bytes BIGINT NOT NULL,
    entries BIGINT NOT NULL,
    -- Only then is it there: a row is written before its object, so that no collection overlooks it.
    stored BOOLEAN NOT NULL,
    -- When a publish last relied on it.
    touched_at BIGINT NOT NULL,
    PRIMARY KEY (app_id, kind, name)
);
CREATE INDEX blobs_by_hash ON blobs (hash);

-- One row for each object: what publishes and collections lock, so that nothing is removed that a publish begins to rely on.
CREATE TABLE blob_objects (
    hash TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    removing_since BIGINT -- NULL: nobody is removing it.
);
