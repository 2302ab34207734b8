-- Plain packets are received on a tuple that was proven to lead to the peer; until now they were on any.

ALTER TABLE connections ADD COLUMN proven INTEGER NOT NULL DEFAULT 0;
UPDATE connections SET proven = 1;
