-- The wall clock is set, by people and at boot; what is decided by the time that has passed counts it otherwise.

ALTER TABLE own ADD COLUMN booted_at REAL;             -- when the machine was booted, as the clock said at the daemon's
                                                       -- first start since: times of connections are that plus the
                                                       -- time since boot.  NULL: not known
ALTER TABLE own ADD COLUMN ran REAL NOT NULL DEFAULT 0;    -- seconds that the daemon has run, all its lives together
ALTER TABLE peers ADD COLUMN met REAL NOT NULL DEFAULT 0;  -- own.ran when it was met last
