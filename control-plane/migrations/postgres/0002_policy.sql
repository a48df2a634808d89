-- The policy, what a request was judged by, and the yes and no of each person.

-- Every version that was put in force; the largest is. None is ever changed.
CREATE TABLE policies (
    version BIGINT NOT NULL PRIMARY KEY CHECK (version > 0),
    author BIGINT NOT NULL REFERENCES subjects (number),
    applied_ms BIGINT NOT NULL,
    comment TEXT COLLATE "C" NOT NULL,
    -- Its files are those of this one; NULL: they were new.
    restores BIGINT REFERENCES policies (version),
    -- A portcullis.policy.v1.GetPolicyResponse with nothing but the files.
    files BYTEA NOT NULL
);

CREATE FUNCTION refuse_to_change_policies() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a version of the policy never changes';
END
$$;

CREATE TRIGGER policies_stay BEFORE UPDATE OR DELETE ON policies
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_policies();

CREATE TRIGGER policies_are_never_truncated BEFORE TRUNCATE ON policies
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_policies();

ALTER TABLE requests
    DROP CONSTRAINT requests_state_check,
    DROP CONSTRAINT requests_check1,
    DROP CONSTRAINT requests_check2,
    -- By which version it was judged, and which role of it; NULL: there was none.
    ADD COLUMN policy BIGINT REFERENCES policies (version),
    ADD COLUMN role TEXT COLLATE "C",
    -- What was known of who asked: by which way and from where they came (NULL: that is not known), whether they signed in by more
    -- than one factor, when (NULL: it was not by an identity provider), and which groups it named, separated by one line feed.
    ADD COLUMN channel TEXT COLLATE "C" CHECK (channel IN ('cli', 'api', 'web', 'workload')),
    ADD COLUMN source TEXT COLLATE "C",
    ADD COLUMN mfa BOOLEAN NOT NULL DEFAULT FALSE,
    ADD COLUMN signed_in_ms BIGINT,
    ADD COLUMN named_groups TEXT COLLATE "C" NOT NULL DEFAULT '',
    -- When it is over if nobody has decided; NULL: never.
    ADD COLUMN lapses_ms BIGINT,
    -- While it is pending: when something follows by itself; NULL: nothing does.
    ADD COLUMN due_ms BIGINT,
    ADD CHECK (state IN ('pending', 'approved', 'denied', 'withdrawn', 'lapsed')),
    -- `decided_by` is NULL, too, if it was no person who decided.
    ADD CHECK ((state = 'pending') = (decided_ms IS NULL)),
    ADD CHECK (decided_by IS NULL OR decided_ms IS NOT NULL),
    ADD CHECK ((policy IS NULL) = (role IS NULL));

-- One person's yes or no about one request; never changed.
CREATE TABLE votes (
    request TEXT COLLATE "C" NOT NULL REFERENCES requests (id),
    person BIGINT NOT NULL REFERENCES subjects (number),
    at_ms BIGINT NOT NULL,
    yes BOOLEAN NOT NULL,
    comment TEXT COLLATE "C" NOT NULL,
    -- What is left of what was asked for: NULL and empty: all of it. Names of hosts are separated by one space.
    duration_s BIGINT CHECK (duration_s > 0),
    hosts TEXT COLLATE "C" NOT NULL,
    -- Who has said yes can still say no.
    PRIMARY KEY (request, person, yes)
);

INSERT INTO votes (request, person, at_ms, yes, comment, hosts)
    SELECT id, decided_by, decided_ms, state = 'approved', comment, '' FROM requests WHERE decided_by IS NOT NULL;

ALTER TABLE grants
    DROP CONSTRAINT grants_end_reason_check,
    ADD CHECK (
        end_reason IN (
            'time', 'released', 'revoked', 'activation_failed', 'idle', 'task_exit', 'policy_changed',
            'identity_disabled'
        )
    );

CREATE INDEX requests_due ON requests (due_ms) WHERE state = 'pending';
CREATE INDEX votes_by_person ON votes (person, request);
-- Who had access at a moment of the past.
CREATE INDEX grants_by_time ON grants (expires_ms, issued_ms);

-- Since when somebody is shut out; NULL: they are not.
ALTER TABLE subjects ADD COLUMN disabled_ms BIGINT;
