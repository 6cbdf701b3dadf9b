-- Each function of an app for itself, as the REST API shows them. AUTOINCREMENT: an id never comes back.
CREATE TABLE functions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    app_id TEXT NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    trigger_type TEXT NOT NULL,
    -- As it was created, or last published.
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    -- Only grows, so that the number of a version that is gone never comes back.
    last_number BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (app_id, trigger_type)
);

CREATE TABLE function_versions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    app_id TEXT NOT NULL,
    function_id BIGINT NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    number BIGINT NOT NULL,
    -- Of its settings and its source; empty where that was not kept.
    fingerprint TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (function_id, number)
);

-- What each version of an app runs.
CREATE TABLE function_bindings (
    app_id TEXT NOT NULL,
    app_version BIGINT NOT NULL,
    function_id BIGINT NOT NULL REFERENCES functions (id) ON DELETE CASCADE,
    function_version_id BIGINT NOT NULL REFERENCES function_versions (id) ON DELETE CASCADE,
    PRIMARY KEY (app_id, app_version, function_id),
    FOREIGN KEY (app_id, app_version) REFERENCES versions (app_id, number) ON DELETE CASCADE
);
CREATE INDEX function_bindings_by_function ON function_bindings (function_id, app_version);
CREATE INDEX function_bindings_by_version ON function_bindings (function_version_id);
CREATE INDEX function_versions_by_app ON function_versions (app_id);

-- Pages of one function's invocations are counted.
CREATE INDEX invocations_by_function ON invocations (app_id, trigger_type, id);

-- What was published before: nobody knows any more which of these were the same.
INSERT INTO functions (app_id, trigger_type, name, description, last_number, created_at)
SELECT v.app_id, json_extract(f.value, '$.trigger_type'), json_extract(f.value, '$.name'), json_extract(f.value, '$.description'),
    COUNT(*), MIN(v.created_at)
FROM versions v, json_each(v.functions_json) f WHERE v.state = 1 GROUP BY 1, 2;
INSERT INTO function_versions (app_id, function_id, number, fingerprint, created_at)
SELECT v.app_id, fn.id, ROW_NUMBER() OVER (PARTITION BY fn.id ORDER BY v.number), '', v.created_at
FROM versions v, json_each(v.functions_json) f, functions fn
WHERE v.state = 1 AND fn.app_id = v.app_id AND fn.trigger_type = json_extract(f.value, '$.trigger_type')
ORDER BY v.app_id, v.number;
INSERT INTO function_bindings (app_id, app_version, function_id, function_version_id)
SELECT app_id, app_version, function_id, (
    SELECT fv.id FROM function_versions fv WHERE fv.function_id = numbered.function_id AND fv.number = numbered.number)
FROM (
    SELECT v.app_id AS app_id, v.number AS app_version, fn.id AS function_id,
        ROW_NUMBER() OVER (PARTITION BY fn.id ORDER BY v.number) AS number
    FROM versions v, json_each(v.functions_json) f, functions fn
    WHERE v.state = 1 AND fn.app_id = v.app_id AND fn.trigger_type = json_extract(f.value, '$.trigger_type')) numbered;
