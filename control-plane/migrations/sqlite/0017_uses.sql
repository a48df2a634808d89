-- What was let through by grants, and which events are about what: written with the events themselves, so that a report need not
-- read the whole record. Grants are named by id alone, without a reference: rows are made only for grants that a host has or had
-- (see store/uses.rs), and no grant is ever deleted.

CREATE TABLE grant_uses (
    grant_id TEXT NOT NULL,
    host INTEGER NOT NULL REFERENCES hosts (number),
    -- `tcp/5432`, or the path of a unix socket; empty: all those beyond the number that is kept apart (see rules/uses.rs).
    place TEXT NOT NULL,
    -- By the host's clock.
    first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    -- How many verdicts; 0: only the end of one that was let through is known.
    connections INTEGER NOT NULL CHECK (connections >= 0),
    PRIMARY KEY (grant_id, host, place)
) STRICT, WITHOUT ROWID;

-- What hosts said last of a grant: that they let nobody through by it any more.
CREATE TABLE grant_receipts (
    grant_id TEXT NOT NULL,
    host INTEGER NOT NULL REFERENCES hosts (number),
    -- How many said that a process had ended, after which the grant may have gone on; and how many said anything else.
    exits INTEGER NOT NULL CHECK (exits >= 0),
    ends INTEGER NOT NULL CHECK (ends >= 0),
    -- When somebody was last let through, by any of them; NULL: nobody was.
    admitted_ms INTEGER,
    PRIMARY KEY (grant_id, host)
) STRICT, WITHOUT ROWID;

-- In which hours a host has lost verdicts that let somebody through: what was used then is not known.
CREATE TABLE use_gaps (
    host INTEGER NOT NULL REFERENCES hosts (number),
    hour_ms INTEGER NOT NULL,
    PRIMARY KEY (host, hour_ms)
) STRICT, WITHOUT ROWID;

-- Which events are about a grant, or about a request and no grant.
CREATE TABLE event_refs (
    about TEXT NOT NULL,
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,
    PRIMARY KEY (about, position)
) STRICT, WITHOUT ROWID;

-- Which requests asked for a grant to live longer.
CREATE INDEX requests_by_extended ON requests (extends) WHERE extends IS NOT NULL;
