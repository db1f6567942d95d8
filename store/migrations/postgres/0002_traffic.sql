-- As the step of this name on SQLite; see there.
CREATE TABLE traffic (
    function TEXT COLLATE "C" PRIMARY KEY REFERENCES functions (name),
    stable   BIGINT NOT NULL,
    split    TEXT NOT NULL,
    since    TEXT COLLATE "C" NOT NULL,
    aborted  TEXT
);
