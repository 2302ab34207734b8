-- Each start of the daemon has counters of its own for tunnel datagrams.  Counted from the daemon's first start, as
-- before, they would soon be further ahead than the other host lets them be.

ALTER TABLE connections ADD COLUMN born INTEGER NOT NULL DEFAULT 0;  -- own.epoch when the connection was taken on

ALTER TABLE own ADD COLUMN boot TEXT;  -- id of the boot that the connections are of; NULL: not known
