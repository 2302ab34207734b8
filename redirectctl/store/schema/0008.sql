-- Names are learnt from the command lines of users: whose, so that nobody's displace another's.

CREATE TABLE names_by_user (
    public    BLOB NOT NULL REFERENCES peers ON DELETE CASCADE,
    uid       INTEGER NOT NULL,                       -- 0 for those learnt before this was kept
    name      TEXT NOT NULL,                          -- whole, with a dot at the end
    last_used REAL NOT NULL,
    PRIMARY KEY (public, uid, name)
) STRICT, WITHOUT ROWID;

INSERT INTO names_by_user SELECT public, 0, name, last_used FROM peer_names;
DROP TABLE peer_names;
ALTER TABLE names_by_user RENAME TO peer_names;
