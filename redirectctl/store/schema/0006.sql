-- Connections that are to stay on an interface.

ALTER TABLE connections ADD COLUMN device TEXT NOT NULL DEFAULT '';  -- a VPN, a VRF, or what the socket was bound to
ALTER TABLE connections ADD COLUMN bound INTEGER NOT NULL DEFAULT 0 CHECK (bound IN (0, 1));  -- by SO_BINDTODEVICE
