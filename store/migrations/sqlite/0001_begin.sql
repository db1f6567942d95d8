-- Times are RFC 3339 in UTC with nanoseconds, so that their text sorts as they do. JSON is text.

-- A function's row outlives its deletion: `last_number` is how numbers are never used twice.
CREATE TABLE functions (
    name          TEXT PRIMARY KEY,
    -- NULL until the first version serves and after a delete: nobody owns the name.
    project       TEXT,
    active_number BIGINT,
    last_number   BIGINT NOT NULL
);

CREATE TABLE deployments (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    project    TEXT,
    state      TEXT NOT NULL,
    created_at TEXT NOT NULL,
    ended_at   TEXT,
    error      TEXT,
    -- What activation does, as JSON: [{name, version, changed}].
    plan       TEXT NOT NULL
);

CREATE TABLE versions (
    function     TEXT NOT NULL REFERENCES functions (name),
    number       BIGINT NOT NULL,
    project      TEXT NOT NULL,
    deployment   TEXT NOT NULL REFERENCES deployments (id),
    image        TEXT NOT NULL,
    digest       TEXT NOT NULL,
    spec         TEXT NOT NULL,
    created_at   TEXT NOT NULL,
    -- NULL while its deployment is at work: the number is taken, nothing serves.
    activated_at TEXT,
    PRIMARY KEY (function, number)
);
CREATE INDEX versions_of_deployment ON versions (deployment);

CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    -- SHA-256 of the secret in hexadecimal; the secret itself is nowhere in the store.
    hash       TEXT NOT NULL,
    created_at TEXT NOT NULL
);

CREATE TABLE draining_vms (
    id TEXT PRIMARY KEY
);
