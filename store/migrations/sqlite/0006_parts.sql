-- What the version's image comes apart into, as JSON: the runtime base and the layers above it. NULL for images that
-- nobody here composed, and for versions of before this step, until a deployment makes the same image again.
ALTER TABLE versions ADD COLUMN parts TEXT;
