-- Where our clock was at a moment of each boot of a machine: a control plane that starts there again goes on from it.
CREATE TABLE clock_anchors (
    -- As /proc/sys/kernel/random/boot_id has it.
    boot TEXT NOT NULL PRIMARY KEY,
    -- The moment: CLOCK_BOOTTIME.
    boot_ms INTEGER NOT NULL CHECK (boot_ms >= 0),
    -- What our clock said.
    steady_ms INTEGER NOT NULL,
    -- What the wall clock said: how far apart they were is known already.
    wall_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
