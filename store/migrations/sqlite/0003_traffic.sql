-- How the calls of a function are split among versions. A split holds only while `stable` is the active version:
-- whatever else makes another version serve, a release before this step included, ends it.
CREATE TABLE traffic (
    function TEXT PRIMARY KEY REFERENCES functions (name),
    stable   BIGINT NOT NULL,
    -- JSON: slots, stickiness, when it ends by itself.
    split    TEXT NOT NULL,
    -- Tells this split from those before it.
    since    TEXT NOT NULL,
    -- NULL while it holds; then, as JSON, what ended it.
    aborted  TEXT
);
