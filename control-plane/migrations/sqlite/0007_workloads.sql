-- Workloads that sign in with tokens of their issuers, and hosts that Kubernetes clusters bring.

-- By what whoever holds the session is recognised: a word of `Credential`.
ALTER TABLE sign_ins ADD COLUMN credential TEXT NOT NULL DEFAULT 'session'
    CHECK (credential IN ('session', 'workload'));

-- Not only ID tokens any more, and some may be used more than once.
ALTER TABLE used_id_tokens RENAME TO used_tokens;
ALTER TABLE used_tokens ADD COLUMN times INTEGER NOT NULL DEFAULT 1;
DROP INDEX used_id_tokens_by_end;
CREATE INDEX used_tokens_by_end ON used_tokens (usable_until_ms);

-- The cluster whose tokens are evidence for the host: it has brought it. NULL: none are; an administrator has added the host, or
-- has revoked it since.
ALTER TABLE hosts ADD COLUMN cluster TEXT;
