-- What an identity provider says of people besides, for the conditions of policies.

ALTER TABLE sign_ins
    -- All groups of the person that a policy could name, separated by one line feed; `role_groups` are those of them that have a role here.
    -- Of a session that is under way the others are not known: they come with its renewal.
    ADD COLUMN named_groups TEXT COLLATE "C" NOT NULL DEFAULT '',
    -- What was said of the device; NULL: nothing.
    ADD COLUMN device_managed BOOLEAN,
    ADD COLUMN device_encrypted BOOLEAN,
    ADD CHECK ((device_encrypted IS NULL) = (device_managed IS NULL));

UPDATE sign_ins SET named_groups = role_groups;

-- The same, of who asked.
ALTER TABLE requests
    ADD COLUMN device_managed BOOLEAN,
    ADD COLUMN device_encrypted BOOLEAN,
    ADD CHECK ((device_encrypted IS NULL) = (device_managed IS NULL));
