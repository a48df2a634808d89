-- Attempts that were denied, as the beginning of a request: whom it would be for, what, and from where. None of them is a request, and none
-- can be approved; a row is gone when it has become one, is dropped, or has lapsed.
CREATE TABLE drafts (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    subject BIGINT NOT NULL REFERENCES subjects (number),
    resource BIGINT NOT NULL REFERENCES resources (number),
    host BIGINT NOT NULL REFERENCES hosts (number),
    first_ms BIGINT NOT NULL,
    last_ms BIGINT NOT NULL,
    attempts BIGINT NOT NULL CHECK (attempts > 0),
    UNIQUE (subject, resource, host)
);

CREATE INDEX drafts_first ON drafts (first_ms);

-- How many attempts found no room for a draft, ever.
CREATE TABLE drafts_left_out (
    only_one BIGINT NOT NULL PRIMARY KEY CHECK (only_one = 1),
    attempts BIGINT NOT NULL
);

INSERT INTO drafts_left_out (only_one, attempts) VALUES (1, 0);

ALTER TABLE resources ADD COLUMN drafts BOOLEAN NOT NULL DEFAULT false;
