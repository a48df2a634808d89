-- Programs that a step of a policy asks, about requests that wait for them. A row is gone when there is an answer, or the request is
-- decided.
CREATE TABLE hook_questions (
    request TEXT NOT NULL,
    hook TEXT NOT NULL,
    asked_ms INTEGER NOT NULL,
    -- When it is asked (again). While somebody asks: until when it is theirs alone.
    due_ms INTEGER NOT NULL,
    -- Who asks, or asked last; NULL: nobody yet.
    claimed_by TEXT,
    PRIMARY KEY (request, hook)
) STRICT, WITHOUT ROWID;

CREATE INDEX hook_questions_due ON hook_questions (due_ms);

-- What they said; never changed. No references: `requests` is made anew when what its CHECK says is changed.
CREATE TABLE hook_answers (
    request TEXT NOT NULL,
    hook TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    -- No answer that counts is a no.
    yes INTEGER NOT NULL CHECK (yes IN (0, 1)),
    comment TEXT NOT NULL,
    PRIMARY KEY (request, hook)
) STRICT, WITHOUT ROWID;
