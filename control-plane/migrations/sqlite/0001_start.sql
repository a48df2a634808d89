-- The durable record of the control plane. Times are milliseconds since 1970 (UTC), names of columns say so.

-- One row: which life of generations and of our own audit sequence this is.
CREATE TABLE timeline (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    id TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

-- Addresses and ports are lists, separated by one space, in the form in which people write them. SQL never looks into
-- them: whether two destinations collide is decided by the rules.
CREATE TABLE resources (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    addresses TEXT NOT NULL,
    ports TEXT NOT NULL,
    added_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE subjects (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('member', 'approver', 'auditor', 'administrator')),
    added_ms INTEGER NOT NULL
) STRICT;

-- A selector belongs to one subject, or nobody could say whose a process is.
CREATE TABLE selectors (
    selector TEXT PRIMARY KEY,
    subject INTEGER NOT NULL REFERENCES subjects (number)
) STRICT, WITHOUT ROWID;

CREATE INDEX selectors_by_subject ON selectors (subject);

CREATE TABLE hosts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    -- Of the grant set wanted there; only ever grows.
    generation INTEGER NOT NULL DEFAULT 1 CHECK (generation > 0),
    -- Of the grant set its kernel holds, as its agent last said; 0: none.
    applied_generation INTEGER NOT NULL DEFAULT 0,
    seen_ms INTEGER,
    agent_version TEXT NOT NULL DEFAULT '',
    kernel_release TEXT NOT NULL DEFAULT '',
    -- What its agent last reported; NULL: nothing yet.
    reported_state TEXT CHECK (reported_state IN ('enforcing', 'degraded', 'not enforcing')),
    reported_detail TEXT NOT NULL DEFAULT '',
    added_ms INTEGER NOT NULL
) STRICT;

-- Resources and subjects that a host's kernel could not take.
CREATE TABLE host_refusals (
    host INTEGER NOT NULL REFERENCES hosts (number),
    resource INTEGER REFERENCES resources (number),
    subject INTEGER REFERENCES subjects (number),
    error TEXT NOT NULL,
    CHECK ((resource IS NULL) <> (subject IS NULL))
) STRICT;

CREATE UNIQUE INDEX host_refusals_of_resources ON host_refusals (host, resource) WHERE resource IS NOT NULL;
CREATE UNIQUE INDEX host_refusals_of_subjects ON host_refusals (host, subject) WHERE subject IS NOT NULL;
CREATE INDEX host_refusals_by_host ON host_refusals (host);

-- Only the SHA-256 of a token is kept. A subject and a host have one token at a time.
CREATE TABLE tokens (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    subject INTEGER UNIQUE REFERENCES subjects (number),
    host INTEGER UNIQUE REFERENCES hosts (number),
    issued_ms INTEGER NOT NULL,
    CHECK ((subject IS NULL) <> (host IS NULL))
) STRICT, WITHOUT ROWID;

-- Ids are UUIDv7: their order is the order of creation.
CREATE TABLE requests (
    id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied')),
    resource INTEGER NOT NULL REFERENCES resources (number),
    subject INTEGER NOT NULL REFERENCES subjects (number),
    requester INTEGER NOT NULL REFERENCES subjects (number),
    duration_s INTEGER NOT NULL CHECK (duration_s > 0),
    reason TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    decided_by INTEGER REFERENCES subjects (number),
    decided_ms INTEGER,
    comment TEXT NOT NULL DEFAULT '',
    CHECK ((state = 'pending') = (decided_by IS NULL)),
    CHECK ((decided_by IS NULL) = (decided_ms IS NULL))
) STRICT;

CREATE INDEX requests_pending ON requests (id) WHERE state = 'pending';
CREATE INDEX requests_by_subject ON requests (subject, id);
CREATE INDEX requests_by_requester ON requests (requester, id);

CREATE TABLE request_hosts (
    request TEXT NOT NULL REFERENCES requests (id),
    host INTEGER NOT NULL REFERENCES hosts (number),
    PRIMARY KEY (request, host)
) STRICT, WITHOUT ROWID;

CREATE TABLE grants (
    id TEXT NOT NULL PRIMARY KEY,
    request TEXT NOT NULL UNIQUE REFERENCES requests (id),
    state TEXT NOT NULL CHECK (state IN ('activating', 'active', 'ending', 'ended')),
    end_reason TEXT CHECK (end_reason IN ('time', 'released', 'revoked', 'activation_failed')),
    issued_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    CHECK ((state IN ('activating', 'active')) = (end_reason IS NULL)),
    CHECK ((state = 'ended') = (ended_ms IS NOT NULL))
) STRICT;

CREATE INDEX grants_unended ON grants (id) WHERE state <> 'ended';
CREATE INDEX grants_by_deadline ON grants (expires_ms) WHERE state <> 'ended';

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

-- Grants that a host's kernel may hold: what its sets are made of, and what its answers are about.
CREATE INDEX grant_hosts_open ON grant_hosts (host) WHERE holding <> 'free';

-- The audit record: numbered without holes, never changed.
CREATE TABLE audit_events (
    position INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL CHECK (sequence > 0),
    -- portcullis.audit.v1.AuditEvent, with position 0.
    payload BLOB NOT NULL,
    UNIQUE (source, epoch, sequence)
) STRICT;

CREATE TRIGGER audit_events_are_never_changed BEFORE UPDATE ON audit_events
BEGIN
    SELECT RAISE(ABORT, 'audit events are never changed');
END;

CREATE TRIGGER audit_events_are_never_deleted BEFORE DELETE ON audit_events
BEGIN
    SELECT RAISE(ABORT, 'audit events are never deleted');
END;

-- Also what keeps INSERT OR REPLACE out, which would delete without calling the trigger above.
CREATE TRIGGER audit_events_follow_each_other BEFORE INSERT ON audit_events
WHEN NEW.position IS NOT (SELECT coalesce(max(position), 0) + 1 FROM audit_events)
BEGIN
    SELECT RAISE(ABORT, 'audit events are appended without holes');
END;
