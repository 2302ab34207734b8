-- What people call peers: a word of a user's command line, and what a peer says of itself.

CREATE TABLE peer_words (
    public    BLOB NOT NULL REFERENCES peers ON DELETE CASCADE,
    uid       INTEGER NOT NULL,
    word      TEXT NOT NULL,                          -- as in `ssh WORD`
    last_used REAL NOT NULL,
    PRIMARY KEY (public, uid)
) STRICT, WITHOUT ROWID;

ALTER TABLE peers ADD COLUMN says TEXT;               -- PeerRecord.says
