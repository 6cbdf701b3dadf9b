-- Who changed what. Written with the change itself. It outlasts the apps that it tells of, so nothing refers to them.
CREATE TABLE audit_entries (
    -- UUIDv7: the order of time, which pages and the retention go by.
    id TEXT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL, -- As in the id, for those who read with SQL.
    app_id TEXT, -- NULL: the whole service.
    actor_kind TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    actor_issuer TEXT NOT NULL,
    request_id TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    details_json TEXT NOT NULL,
    failure TEXT -- The reason's code. NULL: it was done.
);
CREATE INDEX audit_entries_by_app ON audit_entries (app_id, id);
CREATE INDEX audit_entries_by_actor ON audit_entries (actor_id, id);
-- An app's own clients see what happened since: another's may have had the name before.
CREATE INDEX audit_entries_beginnings ON audit_entries (app_id, id) WHERE action = 'app.create';

-- As JSON. For the entry of a publish that its service does not see the end of.
ALTER TABLE versions ADD COLUMN published_by TEXT;
