-- What others are to be told of, and have not been yet. A row is gone when its message has arrived, or was given up.

CREATE TABLE outbox (
    -- The name that the configuration gives to whom it is for.
    target TEXT NOT NULL,
    -- Of the audit event that it tells of.
    position INTEGER NOT NULL,
    made_ms INTEGER NOT NULL,
    -- When it is tried (again). While somebody has it in hand: until when it is theirs alone.
    due_ms INTEGER NOT NULL,
    -- Who has it in hand, or had it last; NULL: nobody yet.
    claimed_by TEXT,
    -- How often it was tried, and has failed.
    tries INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (target, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX outbox_due ON outbox (target, due_ms);

-- One row for each target that was ever written to.
CREATE TABLE outbox_targets (
    target TEXT NOT NULL PRIMARY KEY,
    -- How many rows of `outbox` are for it.
    waiting INTEGER NOT NULL,
    -- How many were given up because too many waited, and are not on record yet; of which events the first and the last.
    dropped INTEGER NOT NULL DEFAULT 0,
    dropped_first INTEGER,
    dropped_last INTEGER
) STRICT, WITHOUT ROWID;

-- The last warning that a grant is about to end. Not a column of `grants`, and no reference to it: that table is made anew when what its CHECK
-- says is changed.
CREATE TABLE grant_warnings (
    grant_id TEXT NOT NULL PRIMARY KEY,
    -- Of which deadline: another one, as after an extension, has warnings of its own.
    expires_ms INTEGER NOT NULL,
    -- How long before it.
    ahead_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
