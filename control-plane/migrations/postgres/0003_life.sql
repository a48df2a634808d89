-- Grants that live longer than they were granted for at first.

ALTER TABLE grants ADD COLUMN extensions BIGINT NOT NULL DEFAULT 0 CHECK (extensions >= 0);
ALTER TABLE requests
    -- The grant that is to live longer by duration_s, and until when at the latest; NULL: it asks for a new one.
    ADD COLUMN extends TEXT COLLATE "C" REFERENCES grants (id),
    ADD COLUMN extends_until_ms BIGINT,
    ADD CHECK ((extends_until_ms IS NULL) = (extends IS NULL));
