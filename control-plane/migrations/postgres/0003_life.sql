-- Grants that live longer than they were granted for at first, or begin later; resources that are closed for a time; what was had in
-- emergencies.

ALTER TABLE grants
    DROP CONSTRAINT grants_end_reason_check,
    DROP CONSTRAINT grants_state_check,
    DROP CONSTRAINT grants_check,
    ADD CHECK (state IN ('scheduled', 'activating', 'active', 'ending', 'ended')),
    ADD CHECK ((state IN ('scheduled', 'activating', 'active')) = (end_reason IS NULL)),
    -- When its time began, or begins by itself; NULL: it waits, or waited, to be activated: until then expires_ms is when it lapses.
    ADD COLUMN begins_ms BIGINT,
    -- How long it lives once activated; NULL: its time began, or begins, by itself.
    ADD COLUMN duration_s BIGINT CHECK (duration_s > 0),
    ADD CHECK (
        end_reason IN (
            'time', 'released', 'revoked', 'activation_failed', 'idle', 'task_exit', 'policy_changed',
            'identity_disabled', 'frozen', 'lapsed'
        )
    ),
    -- How often it was extended.
    ADD COLUMN extensions BIGINT NOT NULL DEFAULT 0 CHECK (extensions >= 0);

UPDATE grants SET begins_ms = issued_ms;
ALTER TABLE grants ADD CHECK (begins_ms IS NOT NULL OR duration_s IS NOT NULL);
CREATE INDEX grants_scheduled ON grants (begins_ms) WHERE state = 'scheduled';

ALTER TABLE requests
    -- The grant that is to live longer by duration_s, and until when at the latest; NULL: it asks for a new one.
    ADD COLUMN extends TEXT COLLATE "C" REFERENCES grants (id),
    ADD COLUMN extends_until_ms BIGINT,
    ADD CHECK ((extends_until_ms IS NULL) = (extends IS NULL));

-- Resources that are closed for a time. Ids are UUIDv7.
CREATE TABLE freezes (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- All resources; otherwise those of freeze_resources.
    everything BOOLEAN NOT NULL,
    reason TEXT COLLATE "C" NOT NULL,
    begun_by BIGINT NOT NULL REFERENCES subjects (number),
    -- What was live when it began was not ended.
    keep_live BOOLEAN NOT NULL,
    began_ms BIGINT NOT NULL,
    until_ms BIGINT NOT NULL,
    -- NULL: nobody has lifted it, and nobody has noted yet that its time is over.
    ended_ms BIGINT,
    -- NULL: time has lifted it, or it holds.
    ended_by BIGINT REFERENCES subjects (number),
    CHECK (ended_by IS NULL OR ended_ms IS NOT NULL)
);

CREATE INDEX freezes_open ON freezes (until_ms) WHERE ended_ms IS NULL;

-- By name: what is removed and protected again is the same to whoever closed it.
CREATE TABLE freeze_resources (
    of_freeze TEXT COLLATE "C" NOT NULL REFERENCES freezes (id),
    resource TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (of_freeze, resource)
);

-- What was had by a role for emergencies, and is to be looked at by those who were not asked.
CREATE TABLE reviews (
    grant_id TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES grants (id),
    used_ms BIGINT NOT NULL,
    -- NULL: nobody has looked at it.
    reviewed_ms BIGINT,
    reviewer BIGINT REFERENCES subjects (number),
    comment TEXT COLLATE "C" NOT NULL DEFAULT '',
    CHECK ((reviewed_ms IS NULL) = (reviewer IS NULL))
);

CREATE INDEX reviews_open ON reviews (grant_id) WHERE reviewed_ms IS NULL;
