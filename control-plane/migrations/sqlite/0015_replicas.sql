-- The control planes that are at work on this database. On a file that is one at most; the one before it may have left its row.
CREATE TABLE replicas (
    id TEXT PRIMARY KEY,
    -- SHA-256 of the authority by which it signs hosts' certificates.
    authority TEXT NOT NULL,
    -- When it last said that it is at work, by the database's clock.
    seen_ms INTEGER NOT NULL
);

-- Raised by each session of the host's agent: what an earlier one still has to say does not count.
ALTER TABLE hosts ADD COLUMN session INTEGER NOT NULL DEFAULT 0;
-- Which control plane has the session; NULL: there is none.
ALTER TABLE hosts ADD COLUMN replica TEXT;
-- The runs of its agent that had a session, newest last, separated by spaces.
ALTER TABLE hosts ADD COLUMN instances TEXT NOT NULL DEFAULT '';
-- The revision that last had news for its session.
ALTER TABLE hosts ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;

CREATE INDEX hosts_in_session ON hosts (replica) WHERE replica IS NOT NULL;

-- What a control plane knows of the hosts whose sessions it has, for the others to show.
CREATE TABLE presences (
    host INTEGER PRIMARY KEY REFERENCES hosts (number),
    replica TEXT NOT NULL,
    seen_ms INTEGER NOT NULL,
    -- When the host's kernel was last found to be as it should be; NULL: not yet.
    confirmed_ms INTEGER,
    -- In what it was not; NULL: in nothing that is known.
    disagreement TEXT
);

-- By what those who asked told their wishes apart: the same wish again is the same request.
CREATE TABLE request_keys (
    requester INTEGER NOT NULL REFERENCES subjects (number),
    key TEXT NOT NULL,
    -- SHA-256 of what was asked for.
    asked BLOB NOT NULL,
    request TEXT NOT NULL REFERENCES requests (id),
    PRIMARY KEY (requester, key)
) WITHOUT ROWID;
