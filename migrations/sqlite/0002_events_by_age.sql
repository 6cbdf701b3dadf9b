-- Finished events are purged app by app: each keeps them for a time of its own.
DROP INDEX events_finished;
CREATE INDEX events_by_age ON events (app_id, finished_at) WHERE finished_at IS NOT NULL AND state < 4;
