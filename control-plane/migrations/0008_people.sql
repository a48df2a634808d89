-- People who sign in at the console with a browser.

-- When a browser last used its session, within a minute. NULL: it is a tool's. Neither takes the secrets of the other.
ALTER TABLE sign_ins ADD COLUMN used_ms INTEGER;

-- Of the person's groups those that have a role here, as their names are written there, separated by one line feed.
ALTER TABLE sign_ins ADD COLUMN role_groups TEXT NOT NULL DEFAULT '';
