-- Suspended connections.

ALTER TABLE connections ADD COLUMN lost_at REAL;          -- there has been no path since
ALTER TABLE connections ADD COLUMN reason TEXT;           -- why it is suspended
ALTER TABLE connections ADD COLUMN held INTEGER NOT NULL DEFAULT 0 CHECK (held IN (0, 1));  -- by the kernel
ALTER TABLE connections ADD COLUMN send_window INTEGER;   -- what its socket has to get back: bytes
ALTER TABLE connections ADD COLUMN user_timeout INTEGER;  -- milliseconds
