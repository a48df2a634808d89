-- What others are to be told of, and have not been yet. A row is gone when its message has arrived, or was given up.

CREATE TABLE outbox (
    -- The name that the configuration gives to whom it is for.
    target TEXT COLLATE "C" NOT NULL,
    -- Of the audit event that it tells of.
    position BIGINT NOT NULL,
    made_ms BIGINT NOT NULL,
    -- When it is tried (again). While somebody has it in hand: until when it is theirs alone.
    due_ms BIGINT NOT NULL,
    -- Who has it in hand, or had it last; NULL: nobody yet.
    claimed_by TEXT COLLATE "C",
    -- How often it was tried, and has failed.
    tries BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (target, position)
);

CREATE INDEX outbox_due ON outbox (target, due_ms);

-- One row for each target that was ever written to.
CREATE TABLE outbox_targets (
    target TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- How many rows of `outbox` are for it.
    waiting BIGINT NOT NULL,
    -- How many were given up because too many waited, and are not on record yet; of which events the first and the last.
    dropped BIGINT NOT NULL DEFAULT 0,
    dropped_first BIGINT,
    dropped_last BIGINT
);

-- The last warning that a grant is about to end.
CREATE TABLE grant_warnings (
    grant_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- Of which deadline: another one, as after an extension, has warnings of its own.
    expires_ms BIGINT NOT NULL,
    -- How long before it.
    ahead_ms BIGINT NOT NULL
);
