-- Where a deployment came from, for people; NULL when it was sent to the control API.
ALTER TABLE deployments ADD COLUMN source TEXT;

-- Pushes that a hub told of, so that none is deployed twice; for as long as they are remembered.
CREATE TABLE hook_deliveries (
    project    TEXT NOT NULL,
    -- The hub's own id.
    id         TEXT NOT NULL,
    -- SHA-256 of the payload in hexadecimal: the id is not under the signature, the payload is.
    digest     TEXT NOT NULL,
    deployment TEXT NOT NULL,
    seen_at    TEXT NOT NULL,
    PRIMARY KEY (project, id),
    UNIQUE (project, digest)
);
CREATE INDEX hook_deliveries_by_age ON hook_deliveries (seen_at);
