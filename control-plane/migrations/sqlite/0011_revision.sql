-- Raised with each change, so that who follows changes can tell that there was one.
ALTER TABLE timeline ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
