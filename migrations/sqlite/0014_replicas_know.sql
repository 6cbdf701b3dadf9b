-- The last migration that a replica knows; NULL: one of before this. What would take away something that it reads waits for its end.
ALTER TABLE replicas ADD COLUMN migration BIGINT;
