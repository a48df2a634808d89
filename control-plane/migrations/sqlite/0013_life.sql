-- Grants that live longer than they were granted for at first, or begin later; resources that are closed for a time; what was had in
-- emergencies.
--
-- SQLite cannot change what a CHECK says: see 0002_options.sql.

DROP INDEX grants_unended;
DROP INDEX grants_by_deadline;
DROP INDEX grants_by_time;
DROP INDEX grant_hosts_open;

ALTER TABLE grants RENAME TO grants_1;
ALTER TABLE grant_hosts RENAME TO grant_hosts_1;

CREATE TABLE grants (
    id TEXT NOT NULL PRIMARY KEY,
    request TEXT NOT NULL UNIQUE REFERENCES requests (id),
    state TEXT NOT NULL CHECK (state IN ('scheduled', 'activating', 'active', 'ending', 'ended')),
    end_reason TEXT CHECK (
        end_reason IN (
            'time', 'released', 'revoked', 'activation_failed', 'idle', 'task_exit', 'policy_changed',
            'identity_disabled', 'frozen', 'lapsed'
        )
    ),
    issued_ms INTEGER NOT NULL,
    -- When its time began, or begins by itself; NULL: it waits, or waited, to be activated.
    begins_ms INTEGER,
    -- Its deadline; while it waits to be activated: when it lapses.
    expires_ms INTEGER NOT NULL,
    -- How long it lives once activated; NULL: its time began, or begins, by itself.
    duration_s INTEGER CHECK (duration_s > 0),
    ended_ms INTEGER,
    -- How often it was extended.
    extensions INTEGER NOT NULL DEFAULT 0 CHECK (extensions >= 0),
    CHECK ((state IN ('scheduled', 'activating', 'active')) = (end_reason IS NULL)),
    CHECK (begins_ms IS NOT NULL OR duration_s IS NOT NULL),
    CHECK ((state = 'ended') = (ended_ms IS NOT NULL))
) STRICT;

-- A host's set of generation N holds a grant when since_generation <= N, and N < until_generation or that is NULL.
CREATE TABLE grant_hosts (
    grant_id TEXT NOT NULL REFERENCES grants (id),
    host INTEGER NOT NULL REFERENCES hosts (number),
    -- What is known of the host's kernel: see rules/grant.rs.
    holding TEXT NOT NULL CHECK (holding IN ('unknown', 'held', 'refused', 'free')),
    error TEXT NOT NULL DEFAULT '',
    since_generation INTEGER NOT NULL,
    until_generation INTEGER,
    PRIMARY KEY (grant_id, host)
) STRICT, WITHOUT ROWID;

INSERT INTO grants (id, request, state, end_reason, issued_ms, begins_ms, expires_ms, ended_ms)
    SELECT id, request, state, end_reason, issued_ms, issued_ms, expires_ms, ended_ms FROM grants_1;
INSERT INTO grant_hosts (grant_id, host, holding, error, since_generation, until_generation)
    SELECT grant_id, host, holding, error, since_generation, until_generation FROM grant_hosts_1;

-- What refers before what is referred to.
DROP TABLE grant_hosts_1;
DROP TABLE grants_1;

CREATE INDEX grants_unended ON grants (id) WHERE state <> 'ended';
CREATE INDEX grants_scheduled ON grants (begins_ms) WHERE state = 'scheduled';
CREATE INDEX grants_by_deadline ON grants (expires_ms) WHERE state <> 'ended';
-- Grants that a host's kernel may hold: what its sets are made of, and what its answers are about.
CREATE INDEX grant_hosts_open ON grant_hosts (host) WHERE holding <> 'free';
-- Who had access at a moment of the past.
CREATE INDEX grants_by_time ON grants (expires_ms, issued_ms);

-- The grant that is to live longer by duration_s, and until when at the latest; NULL: it asks for a new one.
ALTER TABLE requests ADD COLUMN extends TEXT REFERENCES grants (id);
ALTER TABLE requests ADD COLUMN extends_until_ms INTEGER CHECK ((extends_until_ms IS NULL) = (extends IS NULL));

-- Resources that are closed for a time. Ids are UUIDv7.
CREATE TABLE freezes (
    id TEXT NOT NULL PRIMARY KEY,
    -- All resources; otherwise those of freeze_resources.
    everything INTEGER NOT NULL CHECK (everything IN (0, 1)),
    reason TEXT NOT NULL,
    begun_by INTEGER NOT NULL REFERENCES subjects (number),
    -- What was live when it began was not ended.
    keep_live INTEGER NOT NULL CHECK (keep_live IN (0, 1)),
    began_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    -- NULL: nobody has lifted it, and nobody has noted yet that its time is over.
    ended_ms INTEGER,
    -- NULL: time has lifted it, or it holds.
    ended_by INTEGER REFERENCES subjects (number),
    CHECK (ended_by IS NULL OR ended_ms IS NOT NULL)
) STRICT;

CREATE INDEX freezes_open ON freezes (until_ms) WHERE ended_ms IS NULL;

-- By name: what is removed and protected again is the same to whoever closed it.
CREATE TABLE freeze_resources (
    of_freeze TEXT NOT NULL REFERENCES freezes (id),
    resource TEXT NOT NULL,
    PRIMARY KEY (of_freeze, resource)
) STRICT, WITHOUT ROWID;

-- What was had by a role for emergencies, and is to be looked at by those who were not asked.
CREATE TABLE reviews (
    grant_id TEXT NOT NULL PRIMARY KEY REFERENCES grants (id),
    used_ms INTEGER NOT NULL,
    -- NULL: nobody has looked at it.
    reviewed_ms INTEGER,
    reviewer INTEGER REFERENCES subjects (number),
    comment TEXT NOT NULL DEFAULT '',
    CHECK ((reviewed_ms IS NULL) = (reviewer IS NULL))
) STRICT;

CREATE INDEX reviews_open ON reviews (grant_id) WHERE reviewed_ms IS NULL;
