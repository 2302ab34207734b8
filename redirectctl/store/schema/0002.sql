-- How the two hosts see a connection, and how the tunnel carries it.  NULL: taken on before there was a tunnel.

ALTER TABLE connections ADD COLUMN there_local TEXT;   -- the other host's socket tuple, from its view
ALTER TABLE connections ADD COLUMN there_remote TEXT;
ALTER TABLE connections ADD COLUMN sending BLOB CHECK (length(sending) = 28);  -- the peer's offer: flow, key, start
ALTER TABLE connections ADD COLUMN receiving BLOB CHECK (length(receiving) = 28);  -- ours
ALTER TABLE connections ADD COLUMN integrity INTEGER NOT NULL DEFAULT 0 CHECK (integrity IN (0, 1));
ALTER TABLE connections ADD COLUMN tunnel INTEGER NOT NULL DEFAULT 0 CHECK (tunnel IN (0, 1));
ALTER TABLE connections ADD COLUMN outer_local TEXT;   -- an address
ALTER TABLE connections ADD COLUMN outer_remote TEXT;  -- address and port
