-- Where everybody is accepted, strangers are.  They go before those whom a person has approved.

ALTER TABLE peers ADD COLUMN accepted INTEGER NOT NULL DEFAULT 0 CHECK (accepted IN (0, 1, 2));  -- PeerRecord.accepted
