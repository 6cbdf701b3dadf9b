-- Processes of the service. What says RUNNING, TAKEN or BUILDING is some replica's; what is nobody's is taken over.
CREATE TABLE replicas (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started_at BIGINT NOT NULL,
    -- By the database's clock, where it has one of its own.
    seen_at BIGINT NOT NULL
);
ALTER TABLE events ADD COLUMN replica BIGINT;
ALTER TABLE invocations ADD COLUMN replica BIGINT;
ALTER TABLE versions ADD COLUMN replica BIGINT;
CREATE INDEX events_claimed ON events (replica) WHERE state IN (1, 7);
-- Grows with each activation, also if the app was deleted in between: who has a lower number has old news. About the time of it, in ms.
ALTER TABLE apps ADD COLUMN activation BIGINT NOT NULL DEFAULT 0;
