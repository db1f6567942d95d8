-- Images that no version needs any more, until they are gone.
CREATE TABLE unneeded_images (
    image   TEXT PRIMARY KEY,
    digest  TEXT NOT NULL,
    -- Since when; later when it was tried in vain.
    since   TEXT NOT NULL,
    -- noted: lies where it lay; leaving: is being removed; gone.
    state   TEXT NOT NULL DEFAULT 'noted',
    -- The newest deployment (seq) that may have found it before it was touched; NULL while nobody touched it.
    seen_by BIGINT
);
CREATE INDEX versions_of_image ON versions (image);
