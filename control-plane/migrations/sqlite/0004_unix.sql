-- Unix sockets of resources: a list of paths as `addresses` is one; no path has white space. A resource that has some may have no
-- addresses and no ports.

ALTER TABLE resources ADD COLUMN unix TEXT NOT NULL DEFAULT '';
