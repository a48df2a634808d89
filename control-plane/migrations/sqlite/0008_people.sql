-- People who sign in at the console with a browser, and whose name is whose.

-- When a browser last used its session, within a minute. NULL: it is a tool's. Neither takes the secrets of the other.
ALTER TABLE sign_ins ADD COLUMN used_ms INTEGER;

-- Of the person's groups those that have a role here, as their names are written there, separated by one line feed.
ALTER TABLE sign_ins ADD COLUMN role_groups TEXT NOT NULL DEFAULT '';

-- The account that the person's name belongs to: the issuer, exactly as in its tokens, and its `sub`. NULL: none has signed in under
-- it since there are bindings, or an administrator has taken it away. Not of workloads: an operator binds those by their claims.
ALTER TABLE subjects ADD COLUMN issuer TEXT;
ALTER TABLE subjects ADD COLUMN account TEXT CHECK ((issuer IS NULL) = (account IS NULL));

CREATE UNIQUE INDEX subjects_by_account ON subjects (issuer, account) WHERE account IS NOT NULL;
