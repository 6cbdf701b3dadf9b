-- Events that their function wants together: so many at most, and none waits longer for others. NULL: it runs alone.
ALTER TABLE events ADD COLUMN batch_max BIGINT;
ALTER TABLE events ADD COLUMN batch_wait_ms BIGINT;
-- TAKEN (7): behind the head of its line, and running with it under the same claim.
CREATE INDEX events_taken ON events (app_id, trigger_type, ordering_key) WHERE state = 7;
