-- People who sign in with an identity provider.

-- Who put the subject into the directory: the name of the provider with which it first signed in. Its role is then the one of
-- its last sign-in, and gives nothing by itself. NULL: an administrator, or `init`.
ALTER TABLE subjects ADD COLUMN provider TEXT;

-- Sessions. Only the SHA-256 of a token is kept. A row ends with its time, with a sign-out, and with its subject.
CREATE TABLE sign_ins (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    subject INTEGER NOT NULL REFERENCES subjects (number) ON DELETE CASCADE,
    -- What the subject may do with this session.
    role TEXT NOT NULL CHECK (role IN ('member', 'approver', 'auditor', 'administrator')),
    provider TEXT NOT NULL,
    -- What the provider said, for policies: its name for the account (`sub`), when (NULL: it did not say) and how (`amr`,
    -- separated by one line feed) the person proved who they are.
    account TEXT NOT NULL,
    proven_ms INTEGER,
    methods TEXT NOT NULL,
    began_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    CHECK (expires_ms > began_ms)
) STRICT, WITHOUT ROWID;

CREATE INDEX sign_ins_by_subject ON sign_ins (subject, began_ms);
CREATE INDEX sign_ins_by_end ON sign_ins (expires_ms);

-- ID tokens that were taken, by the SHA-256 of what is signed in them: none is taken twice. Remembered until they are too old to be taken anyway.
CREATE TABLE used_id_tokens (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    usable_until_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX used_id_tokens_by_end ON used_id_tokens (usable_until_ms);
