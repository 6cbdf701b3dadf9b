-- Of each (app, trigger type, ordering key) one event is at the head of its line: QUEUED or RUNNING. The others are WAITING (5), out of
-- the index that is searched for work, so that a long line costs nothing; those of a line whose time has not come are SCHEDULED (6).
ALTER TABLE events ADD COLUMN place BIGINT NOT NULL DEFAULT 0; -- In its line.
ALTER TABLE events ADD COLUMN hops BIGINT NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN claimed_at BIGINT;
-- What counts for the retry policy: attempts after these, and age since then. A redrive sets both.
ALTER TABLE events ADD COLUMN attempts_before BIGINT NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
UPDATE events SET place = seq, since = enqueued_at;
UPDATE events SET state = 5 WHERE state = 0 AND ordering_key IS NOT NULL AND (
    seq NOT IN (SELECT MIN(seq) FROM events WHERE state < 2 AND ordering_key IS NOT NULL
        GROUP BY app_id, trigger_type, ordering_key)
    OR (app_id, trigger_type, ordering_key) IN (SELECT app_id, trigger_type, ordering_key FROM events
        WHERE state = 1 AND ordering_key IS NOT NULL));

DROP INDEX events_due;
DROP INDEX events_turn;
DROP INDEX events_in_flight;
CREATE INDEX events_due ON events (app_id, due_at, seq) WHERE state < 2;
CREATE UNIQUE INDEX events_head ON events (app_id, trigger_type, ordering_key) WHERE state < 2 AND ordering_key IS NOT NULL;
CREATE INDEX events_waiting ON events (app_id, trigger_type, ordering_key, place, seq) WHERE state = 5;
CREATE INDEX events_scheduled ON events (due_at, seq) WHERE state = 6;
CREATE INDEX events_dead ON events (finished_at) WHERE state = 4;

-- Of an event, in the order of their numbers: those that ended, and those whose end nobody saw.
CREATE TABLE attempts (
    event_seq BIGINT NOT NULL REFERENCES events (seq) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    invocation_id TEXT,
    error_json TEXT,
    started_at BIGINT NOT NULL,
    finished_at BIGINT NOT NULL,
    PRIMARY KEY (event_seq, number)
);
