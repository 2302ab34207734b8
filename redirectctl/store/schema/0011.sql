-- Where a peer said that it may be tried: a daemon that begins again may find it nowhere else.

ALTER TABLE peers ADD COLUMN told TEXT NOT NULL DEFAULT '';  -- PeerRecord.told, with spaces between
