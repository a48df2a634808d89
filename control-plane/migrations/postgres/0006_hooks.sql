-- Programs that a step of a policy asks, about requests that wait for them. A row is gone when there is an answer, or the request is
-- decided.
CREATE TABLE hook_questions (
    request TEXT COLLATE "C" NOT NULL,
    hook TEXT COLLATE "C" NOT NULL,
    asked_ms BIGINT NOT NULL,
    -- When it is asked (again). While somebody asks: until when it is theirs alone.
    due_ms BIGINT NOT NULL,
    -- Who asks, or asked last; NULL: nobody yet.
    claimed_by TEXT COLLATE "C",
    PRIMARY KEY (request, hook)
);

CREATE INDEX hook_questions_due ON hook_questions (due_ms);

-- What they said; never changed.
CREATE TABLE hook_answers (
    request TEXT COLLATE "C" NOT NULL,
    hook TEXT COLLATE "C" NOT NULL,
    at_ms BIGINT NOT NULL,
    -- No answer that counts is a no.
    yes BOOLEAN NOT NULL,
    comment TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (request, hook)
);
