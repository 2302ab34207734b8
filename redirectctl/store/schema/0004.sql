-- Names that led to a peer's address when a command used them, and its key answered there.

CREATE TABLE peer_names (
    public    BLOB NOT NULL REFERENCES peers ON DELETE CASCADE,
    name      TEXT NOT NULL,                          -- whole, with a dot at the end
    last_used REAL NOT NULL,
    PRIMARY KEY (public, name)
) STRICT, WITHOUT ROWID;
