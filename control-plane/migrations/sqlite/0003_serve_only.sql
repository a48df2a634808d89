-- From where the hosts that own a resource serve it: prefixes, separated by one space, as `addresses` are. Empty: from everywhere.
ALTER TABLE resources ADD COLUMN serve_only TEXT NOT NULL DEFAULT '';
