-- As SQLite's 0004; see there for what columns mean.
CREATE TABLE unneeded_images (
    image   TEXT COLLATE "C" PRIMARY KEY,
    digest  TEXT NOT NULL,
    since   TEXT COLLATE "C" NOT NULL,
    state   TEXT NOT NULL DEFAULT 'noted',
    seen_by BIGINT
);
CREATE INDEX versions_of_image ON versions (image);
