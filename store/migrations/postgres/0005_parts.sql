-- As SQLite's 0006; see there for what columns mean.
ALTER TABLE versions ADD COLUMN parts TEXT;
