-- Hosts prove themselves by certificates, which they get for join tokens. The tokens that agents had until now end: each host joins
-- once.

ALTER TABLE hosts ADD COLUMN labels TEXT NOT NULL DEFAULT ''; -- `KEY=VALUE`, separated by commas

ALTER TABLE tokens RENAME TO tokens_1;

-- Only the SHA-256 of a token is kept. A subject has one token at a time.
CREATE TABLE tokens (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    subject INTEGER NOT NULL UNIQUE REFERENCES subjects (number),
    issued_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO tokens (hash, subject, issued_ms)
    SELECT hash, subject, issued_ms FROM tokens_1 WHERE subject IS NOT NULL;

DROP TABLE tokens_1;

-- Only the SHA-256 of the secret is kept. A host has one at a time; it is gone when it was used.
CREATE TABLE join_tokens (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    host INTEGER NOT NULL UNIQUE REFERENCES hosts (number),
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The certificates of hosts that have not run out: see rules/enrolment.rs.
CREATE TABLE certificates (
    serial BLOB PRIMARY KEY CHECK (length(serial) = 16),
    host INTEGER NOT NULL REFERENCES hosts (number),
    standing TEXT NOT NULL CHECK (standing IN ('pending', 'current', 'superseded', 'revoked')),
    issued_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX certificates_by_host ON certificates (host, expires_ms);
CREATE UNIQUE INDEX certificates_pending ON certificates (host) WHERE standing = 'pending';
CREATE UNIQUE INDEX certificates_current ON certificates (host) WHERE standing = 'current';

-- Raised with each change of resources or subjects, which are in every host's set.
ALTER TABLE timeline ADD COLUMN directory_revision INTEGER NOT NULL DEFAULT 0;

-- What becomes of live grants on a host that does not hear us: `hold`, `cut`, `shrink:SECONDSs`.
ALTER TABLE resources ADD COLUMN outage TEXT NOT NULL DEFAULT 'hold';
