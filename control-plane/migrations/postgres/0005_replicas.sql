-- The control planes that are at work on this database.
CREATE TABLE replicas (
    id TEXT COLLATE "C" PRIMARY KEY,
    -- SHA-256 of the authority by which it signs hosts' certificates.
    authority TEXT COLLATE "C" NOT NULL,
    -- When it last said that it is at work, by the database's clock.
    seen_ms BIGINT NOT NULL
);

-- Not one holder any more: whoever knows these tables may write.
ALTER TABLE timeline DROP COLUMN holder;
-- The newest migration. A control plane that knows an older one writes nothing any more.
ALTER TABLE timeline ADD COLUMN form BIGINT NOT NULL DEFAULT 0;

-- Raised by each session of the host's agent: what an earlier one still has to say does not count.
ALTER TABLE hosts ADD COLUMN session BIGINT NOT NULL DEFAULT 0;
-- Which control plane has the session; NULL: there is none.
ALTER TABLE hosts ADD COLUMN replica TEXT COLLATE "C";
-- The runs of its agent that had a session, newest last, separated by spaces.
ALTER TABLE hosts ADD COLUMN instances TEXT COLLATE "C" NOT NULL DEFAULT '';
-- The revision that last had news for its session.
ALTER TABLE hosts ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;

CREATE INDEX hosts_in_session ON hosts (replica) WHERE replica IS NOT NULL;
CREATE INDEX hosts_by_change ON hosts (changed);

-- What a control plane knows of the hosts whose sessions it has, for the others to show.
CREATE TABLE presences (
    host BIGINT PRIMARY KEY REFERENCES hosts (number),
    replica TEXT COLLATE "C" NOT NULL,
    seen_ms BIGINT NOT NULL,
    -- When the host's kernel was last found to be as it should be; NULL: not yet.
    confirmed_ms BIGINT,
    -- In what it was not; NULL: in nothing that is known.
    disagreement TEXT COLLATE "C"
);

-- By what those who asked told their wishes apart: the same wish again is the same request.
CREATE TABLE request_keys (
    requester BIGINT NOT NULL REFERENCES subjects (number),
    key TEXT COLLATE "C" NOT NULL,
    -- SHA-256 of what was asked for.
    asked BYTEA NOT NULL,
    request TEXT COLLATE "C" NOT NULL REFERENCES requests (id),
    PRIMARY KEY (requester, key)
);
