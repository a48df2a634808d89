-- Grants of one action.

-- Of the grant: a portcullis.access.v1.Action; NULL: it is for whatever the subject does.
ALTER TABLE requests ADD COLUMN action BLOB;
