-- NULL: the service's default.
ALTER TABLE apps ADD COLUMN rate_per_second BIGINT;
ALTER TABLE apps ADD COLUMN rate_burst BIGINT;
