-- Grants of one run.

-- Of the grant: the id that the agent of its one host gave the run; NULL: it is for all of the subject's processes.
ALTER TABLE requests ADD COLUMN run TEXT;
