-- What an identity provider says of people besides, for the conditions of policies.

-- All groups of the person that a policy could name, separated by one line feed; `role_groups` are those of them that have a role here. Of
-- a session that is under way the others are not known: they come with its renewal.
ALTER TABLE sign_ins ADD COLUMN named_groups TEXT NOT NULL DEFAULT '';

UPDATE sign_ins SET named_groups = role_groups;

-- What was said of the device; NULL: nothing.
ALTER TABLE sign_ins ADD COLUMN device_managed INTEGER CHECK (device_managed IN (0, 1));
ALTER TABLE sign_ins ADD COLUMN device_encrypted INTEGER
    CHECK (device_encrypted IN (0, 1)) CHECK ((device_encrypted IS NULL) = (device_managed IS NULL));

-- The same, of who asked.
ALTER TABLE requests ADD COLUMN device_managed INTEGER CHECK (device_managed IN (0, 1));
ALTER TABLE requests ADD COLUMN device_encrypted INTEGER
    CHECK (device_encrypted IN (0, 1)) CHECK ((device_encrypted IS NULL) = (device_managed IS NULL));
