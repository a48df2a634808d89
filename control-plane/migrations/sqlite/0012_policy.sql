-- The policy, what a request was judged by, and the yes and no of each person.
--
-- SQLite cannot change what a CHECK says: see 0002_options.sql.

DROP INDEX requests_pending;
DROP INDEX requests_by_subject;
DROP INDEX requests_by_requester;
DROP INDEX requests_by_resource;
DROP INDEX grants_unended;
DROP INDEX grants_by_deadline;
DROP INDEX grant_hosts_open;

ALTER TABLE requests RENAME TO requests_1;
ALTER TABLE request_hosts RENAME TO request_hosts_1;
ALTER TABLE grants RENAME TO grants_1;
ALTER TABLE grant_hosts RENAME TO grant_hosts_1;

-- Every version that was put in force; the largest is. None is ever changed.
CREATE TABLE policies (
    version INTEGER NOT NULL PRIMARY KEY CHECK (version > 0),
    author INTEGER NOT NULL REFERENCES subjects (number),
    applied_ms INTEGER NOT NULL,
    comment TEXT NOT NULL,
    -- Its files are those of this one; NULL: they were new.
    restores INTEGER REFERENCES policies (version),
    -- A portcullis.policy.v1.GetPolicyResponse with nothing but the files.
    files BLOB NOT NULL
) STRICT;

CREATE TRIGGER policies_stay BEFORE UPDATE ON policies
BEGIN SELECT RAISE(ABORT, 'a version of the policy never changes'); END;
CREATE TRIGGER policies_stay_there BEFORE DELETE ON policies
BEGIN SELECT RAISE(ABORT, 'a version of the policy never goes'); END;

-- Ids are UUIDv7: their order is the order of creation.
CREATE TABLE requests (
    id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied', 'withdrawn', 'lapsed')),
    resource INTEGER NOT NULL REFERENCES resources (number),
    subject INTEGER NOT NULL REFERENCES subjects (number),
    requester INTEGER NOT NULL REFERENCES subjects (number),
    duration_s INTEGER NOT NULL CHECK (duration_s > 0),
    -- Of the grant; NULL: no limit.
    idle_s INTEGER CHECK (idle_s > 0 AND idle_s < duration_s),
    -- Of the grant: the path of a cgroup; NULL: not bound.
    while_running TEXT,
    -- Of the grant: the id that the agent of its one host gave the run; NULL: it is for all of the subject's processes.
    run TEXT,
    -- Of the grant: a portcullis.access.v1.Action; NULL: it is for whatever the subject does.
    action BLOB,
    reason TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    -- By which version it was judged, and which role of it; NULL: there was none.
    policy INTEGER REFERENCES policies (version),
    role TEXT,
    -- What was known of who asked: by which way and from where they came (NULL: that is not known), whether they signed in by more
    -- than one factor, when (NULL: it was not by an identity provider), and which groups it named, separated by one line feed.
    channel TEXT CHECK (channel IN ('cli', 'api', 'web', 'workload')),
    source TEXT,
    mfa INTEGER NOT NULL DEFAULT 0 CHECK (mfa IN (0, 1)),
    signed_in_ms INTEGER,
    named_groups TEXT NOT NULL DEFAULT '',
    -- When it is over if nobody has decided; NULL: never.
    lapses_ms INTEGER,
    -- While it is pending: when something follows by itself; NULL: nothing does.
    due_ms INTEGER,
    -- NULL: nobody has decided, or it was no person.
    decided_by INTEGER REFERENCES subjects (number),
    decided_ms INTEGER,
    comment TEXT NOT NULL DEFAULT '',
    CHECK ((state = 'pending') = (decided_ms IS NULL)),
    CHECK (decided_by IS NULL OR decided_ms IS NOT NULL),
    CHECK ((policy IS NULL) = (role IS NULL))
) STRICT;

CREATE TABLE request_hosts (
    request TEXT NOT NULL REFERENCES requests (id),
    host INTEGER NOT NULL REFERENCES hosts (number),
    PRIMARY KEY (request, host)
) STRICT, WITHOUT ROWID;

-- One person's yes or no about one request; never changed.
CREATE TABLE votes (
    request TEXT NOT NULL REFERENCES requests (id),
    person INTEGER NOT NULL REFERENCES subjects (number),
    at_ms INTEGER NOT NULL,
    yes INTEGER NOT NULL CHECK (yes IN (0, 1)),
    comment TEXT NOT NULL,
    -- What is left of what was asked for: NULL and empty: all of it. Names of hosts are separated by one space.
    duration_s INTEGER CHECK (duration_s > 0),
    hosts TEXT NOT NULL,
    -- Who has said yes can still say no.
    PRIMARY KEY (request, person, yes)
) STRICT, WITHOUT ROWID;

CREATE TABLE grants (
    id TEXT NOT NULL PRIMARY KEY,
    request TEXT NOT NULL UNIQUE REFERENCES requests (id),
    state TEXT NOT NULL CHECK (state IN ('activating', 'active', 'ending', 'ended')),
    end_reason TEXT CHECK (
        end_reason IN (
            'time', 'released', 'revoked', 'activation_failed', 'idle', 'task_exit', 'policy_changed',
            'identity_disabled'
        )
    ),
    issued_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    CHECK ((state IN ('activating', 'active')) = (end_reason IS NULL)),
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

INSERT INTO requests (
    id, state, resource, subject, requester, duration_s, idle_s, while_running, run, action, reason, created_ms, decided_by,
    decided_ms, comment
) SELECT
    id, state, resource, subject, requester, duration_s, idle_s, while_running, run, action, reason, created_ms, decided_by,
    decided_ms, comment
    FROM requests_1;
INSERT INTO request_hosts (request, host) SELECT request, host FROM request_hosts_1;
INSERT INTO votes (request, person, at_ms, yes, comment, hosts)
    SELECT id, decided_by, decided_ms, state = 'approved', comment, '' FROM requests WHERE decided_by IS NOT NULL;
INSERT INTO grants (id, request, state, end_reason, issued_ms, expires_ms, ended_ms)
    SELECT id, request, state, end_reason, issued_ms, expires_ms, ended_ms FROM grants_1;
INSERT INTO grant_hosts (grant_id, host, holding, error, since_generation, until_generation)
    SELECT grant_id, host, holding, error, since_generation, until_generation FROM grant_hosts_1;

-- What refers before what is referred to.
DROP TABLE grant_hosts_1;
DROP TABLE grants_1;
DROP TABLE request_hosts_1;
DROP TABLE requests_1;

CREATE INDEX requests_pending ON requests (id) WHERE state = 'pending';
CREATE INDEX requests_due ON requests (due_ms) WHERE state = 'pending';
CREATE INDEX requests_by_subject ON requests (subject, id);
CREATE INDEX requests_by_requester ON requests (requester, id);
CREATE INDEX requests_by_resource ON requests (resource);
CREATE INDEX votes_by_person ON votes (person, request);
CREATE INDEX grants_unended ON grants (id) WHERE state <> 'ended';
CREATE INDEX grants_by_deadline ON grants (expires_ms) WHERE state <> 'ended';
-- Grants that a host's kernel may hold: what its sets are made of, and what its answers are about.
CREATE INDEX grant_hosts_open ON grant_hosts (host) WHERE holding <> 'free';
-- Who had access at a moment of the past.
CREATE INDEX grants_by_time ON grants (expires_ms, issued_ms);

-- Since when somebody is shut out; NULL: they are not.
ALTER TABLE subjects ADD COLUMN disabled_ms INTEGER;
