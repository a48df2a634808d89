-- Attempts that were denied, as the beginning of a request: whom it would be for, what, and from where. None of them is a request, and none
-- can be approved; a row is gone when it has become one, is dropped, or has lapsed.
CREATE TABLE drafts (
    id TEXT NOT NULL PRIMARY KEY,
    subject INTEGER NOT NULL REFERENCES subjects (number),
    -- No reference: `resources` is made anew when what its CHECK says is changed.
    resource INTEGER NOT NULL,
    host INTEGER NOT NULL REFERENCES hosts (number),
    first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL CHECK (attempts > 0),
    UNIQUE (subject, resource, host)
) STRICT, WITHOUT ROWID;

CREATE INDEX drafts_first ON drafts (first_ms);

-- How many attempts found no room for a draft, ever.
CREATE TABLE drafts_left_out (
    only_one INTEGER NOT NULL PRIMARY KEY CHECK (only_one = 1),
    attempts INTEGER NOT NULL
) STRICT;

INSERT INTO drafts_left_out (only_one, attempts) VALUES (1, 0);

ALTER TABLE resources ADD COLUMN drafts INTEGER NOT NULL DEFAULT 0 CHECK (drafts IN (0, 1));
