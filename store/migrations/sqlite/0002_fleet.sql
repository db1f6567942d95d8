-- What several gateways and several VMs need.

-- Which gateway works on it; NULL in rows of the first release.
ALTER TABLE deployments ADD COLUMN gateway TEXT;

-- The gateway that made it; NULL for a member's key and in rows of the first release.
ALTER TABLE keys ADD COLUMN gateway TEXT;
-- The member that proves itself with it.
ALTER TABLE keys ADD COLUMN member TEXT;

-- VMs and builders that joined.
CREATE TABLE members (
    id           TEXT PRIMARY KEY,
    kind         TEXT NOT NULL,
    protocol     BIGINT NOT NULL,
    address      TEXT NOT NULL,
    -- 0 or 1.
    tls          BIGINT NOT NULL,
    memory_bytes BIGINT NOT NULL,
    millicores   BIGINT NOT NULL,
    joined_at    TEXT NOT NULL,
    seen_at      TEXT NOT NULL
);

CREATE TABLE gateways (
    id          TEXT PRIMARY KEY,
    public_key  TEXT NOT NULL,
    control_url TEXT NOT NULL,
    seen_at     TEXT NOT NULL
);

-- Which gateway does what only one may do, and until when.
CREATE TABLE leaders (
    role    TEXT PRIMARY KEY,
    gateway TEXT NOT NULL,
    ends_at TEXT NOT NULL
);
