-- Grants that live longer than they were granted for at first.

ALTER TABLE grants ADD COLUMN extensions INTEGER NOT NULL DEFAULT 0 CHECK (extensions >= 0);
-- The grant that is to live longer by duration_s, and until when at the latest; NULL: it asks for a new one.
ALTER TABLE requests ADD COLUMN extends TEXT REFERENCES grants (id);
ALTER TABLE requests ADD COLUMN extends_until_ms INTEGER CHECK ((extends_until_ms IS NULL) = (extends IS NULL));
