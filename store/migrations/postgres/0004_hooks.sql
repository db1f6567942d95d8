-- As SQLite's 0005; see there for what columns mean.
ALTER TABLE deployments ADD COLUMN source TEXT;

CREATE TABLE hook_deliveries (
    project    TEXT COLLATE "C" NOT NULL,
    id         TEXT COLLATE "C" NOT NULL,
    digest     TEXT COLLATE "C" NOT NULL,
    deployment TEXT COLLATE "C" NOT NULL,
    seen_at    TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (project, id),
    UNIQUE (project, digest)
);
CREATE INDEX hook_deliveries_by_age ON hook_deliveries (seen_at);
