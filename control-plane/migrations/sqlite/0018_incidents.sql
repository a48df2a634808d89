-- Flags that people raise, and that conditions of policies see. Of each id the last time that it was opened; the record has the others.
CREATE TABLE incidents (
    id TEXT NOT NULL PRIMARY KEY,
    reason TEXT NOT NULL,
    opened_by INTEGER NOT NULL REFERENCES subjects (number),
    opened_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    -- NULL: nobody has closed it, and nobody has noted yet that its time is over.
    closed_ms INTEGER,
    -- NULL: time has closed it, or it is open.
    closed_by INTEGER REFERENCES subjects (number),
    CHECK (closed_by IS NULL OR closed_ms IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX incidents_open ON incidents (until_ms) WHERE closed_ms IS NULL;
