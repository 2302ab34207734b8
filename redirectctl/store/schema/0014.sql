-- Peers that are approved because a file of known peers lists their keys: with the line goes the approval.

ALTER TABLE peers ADD COLUMN listed INTEGER NOT NULL DEFAULT 0 CHECK (listed IN (0, 1));  -- PeerRecord.listed
