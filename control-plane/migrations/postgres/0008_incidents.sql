-- Flags that people raise, and that conditions of policies see. Of each id the last time that it was opened; the record has the others.
CREATE TABLE incidents (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    reason TEXT COLLATE "C" NOT NULL,
    opened_by BIGINT NOT NULL REFERENCES subjects (number),
    opened_ms BIGINT NOT NULL,
    until_ms BIGINT NOT NULL,
    -- NULL: nobody has closed it, and nobody has noted yet that its time is over.
    closed_ms BIGINT,
    -- NULL: time has closed it, or it is open.
    closed_by BIGINT REFERENCES subjects (number),
    CHECK (closed_by IS NULL OR closed_ms IS NOT NULL)
);

CREATE INDEX incidents_open ON incidents (until_ms) WHERE closed_ms IS NULL;
