-- How a resource is guarded, and resources that are removed; limits of grants, and ends that a host finds.
--
-- SQLite cannot change what a CHECK or a UNIQUE says. So the tables concerned, and those that refer to them, are put aside,
-- made anew and filled; a reference follows its table when that is renamed.

DROP INDEX host_refusals_of_resources;
DROP INDEX host_refusals_of_subjects;
DROP INDEX host_refusals_by_host;
DROP INDEX requests_pending;
DROP INDEX requests_by_subject;
DROP INDEX requests_by_requester;
DROP INDEX grants_unended;
DROP INDEX grants_by_deadline;
DROP INDEX grant_hosts_open;

ALTER TABLE resources RENAME TO resources_1;
ALTER TABLE host_refusals RENAME TO host_refusals_1;
ALTER TABLE requests RENAME TO requests_1;
ALTER TABLE request_hosts RENAME TO request_hosts_1;
ALTER TABLE grants RENAME TO grants_1;
ALTER TABLE grant_hosts RENAME TO grant_hosts_1;

-- Addresses (`local` among them) and ports are lists, separated by one space, in the form in which people write them. SQL
-- never looks into them: whether two destinations collide is decided by the rules.
CREATE TABLE resources (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    addresses TEXT NOT NULL,
    ports TEXT NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('enforce', 'observe')),
    strict INTEGER NOT NULL CHECK (strict IN (0, 1)),
    check_senders INTEGER NOT NULL CHECK (check_senders IN (0, 1)),
    added_ms INTEGER NOT NULL,
    -- Requests and grants of the past still refer to it; NULL: it is protected.
    removed_ms INTEGER
) STRICT;

-- A name may be given again after its resource was removed; numbers never are.
CREATE UNIQUE INDEX resources_protected ON resources (name) WHERE removed_ms IS NULL;

-- Resources and subjects that a host's kernel could not take.
CREATE TABLE host_refusals (
    host INTEGER NOT NULL REFERENCES hosts (number),
    resource INTEGER REFERENCES resources (number),
    subject INTEGER REFERENCES subjects (number),
    error TEXT NOT NULL,
    CHECK ((resource IS NULL) <> (subject IS NULL))
) STRICT;

-- Ids are UUIDv7: their order is the order of creation.
CREATE TABLE requests (
    id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'denied')),
    resource INTEGER NOT NULL REFERENCES resources (number),
    subject INTEGER NOT NULL REFERENCES subjects (number),
    requester INTEGER NOT NULL REFERENCES subjects (number),
    duration_s INTEGER NOT NULL CHECK (duration_s > 0),
    -- Of the grant; NULL: no limit.
    idle_s INTEGER CHECK (idle_s > 0 AND idle_s < duration_s),
    -- Of the grant: the path of a cgroup; NULL: not bound.
    while_running TEXT,
    reason TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    decided_by INTEGER REFERENCES subjects (number),
    decided_ms INTEGER,
    comment TEXT NOT NULL DEFAULT '',
    CHECK ((state = 'pending') = (decided_by IS NULL)),
    CHECK ((decided_by IS NULL) = (decided_ms IS NULL))
) STRICT;

CREATE TABLE request_hosts (
    request TEXT NOT NULL REFERENCES requests (id),
    host INTEGER NOT NULL REFERENCES hosts (number),
    PRIMARY KEY (request, host)
) STRICT, WITHOUT ROWID;

CREATE TABLE grants (
    id TEXT NOT NULL PRIMARY KEY,
    request TEXT NOT NULL UNIQUE REFERENCES requests (id),
    state TEXT NOT NULL CHECK (state IN ('activating', 'active', 'ending', 'ended')),
    end_reason TEXT CHECK (
        end_reason IN ('time', 'released', 'revoked', 'activation_failed', 'idle', 'task_exit')
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

INSERT INTO resources (number, name, addresses, ports, mode, strict, check_senders, added_ms)
    SELECT number, name, addresses, ports, 'enforce', 0, 0, added_ms FROM resources_1;
INSERT INTO host_refusals (host, resource, subject, error)
    SELECT host, resource, subject, error FROM host_refusals_1;
INSERT INTO requests (
    id, state, resource, subject, requester, duration_s, reason, created_ms, decided_by, decided_ms, comment
) SELECT
    id, state, resource, subject, requester, duration_s, reason, created_ms, decided_by, decided_ms, comment
    FROM requests_1;
INSERT INTO request_hosts (request, host) SELECT request, host FROM request_hosts_1;
INSERT INTO grants (id, request, state, end_reason, issued_ms, expires_ms, ended_ms)
    SELECT id, request, state, end_reason, issued_ms, expires_ms, ended_ms FROM grants_1;
INSERT INTO grant_hosts (grant_id, host, holding, error, since_generation, until_generation)
    SELECT grant_id, host, holding, error, since_generation, until_generation FROM grant_hosts_1;

-- What refers before what is referred to.
DROP TABLE grant_hosts_1;
DROP TABLE grants_1;
DROP TABLE request_hosts_1;
DROP TABLE requests_1;
DROP TABLE host_refusals_1;
DROP TABLE resources_1;

CREATE UNIQUE INDEX host_refusals_of_resources ON host_refusals (host, resource) WHERE resource IS NOT NULL;
CREATE UNIQUE INDEX host_refusals_of_subjects ON host_refusals (host, subject) WHERE subject IS NOT NULL;
CREATE INDEX host_refusals_by_host ON host_refusals (host);
CREATE INDEX requests_pending ON requests (id) WHERE state = 'pending';
CREATE INDEX requests_by_subject ON requests (subject, id);
CREATE INDEX requests_by_requester ON requests (requester, id);
CREATE INDEX requests_by_resource ON requests (resource);
CREATE INDEX grants_unended ON grants (id) WHERE state <> 'ended';
CREATE INDEX grants_by_deadline ON grants (expires_ms) WHERE state <> 'ended';
-- Grants that a host's kernel may hold: what its sets are made of, and what its answers are about.
CREATE INDEX grant_hosts_open ON grant_hosts (host) WHERE holding <> 'free';
