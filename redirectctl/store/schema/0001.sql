-- Times are seconds since the epoch.  Numbers of 64 bits without sign are blobs of 8 bytes, most significant first:
-- SQLite's integers have a sign.  Keys and secrets are blobs of 32 bytes.

CREATE TABLE own (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    private BLOB CHECK (length(private) = 32),        -- static X25519 key; NULL until it is made
    epoch   INTEGER NOT NULL DEFAULT 0                -- no greater one was ever given out
) STRICT;

INSERT INTO own (id) VALUES (1);

CREATE TABLE peers (
    public              BLOB PRIMARY KEY CHECK (length(public) = 32),
    fingerprint         TEXT NOT NULL,
    name                TEXT,
    state               TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'rejected', 'changed')),
    secret              BLOB CHECK (length(secret) = 32),
    first_seen          REAL NOT NULL,
    last_contact        REAL,
    handshake_timestamp BLOB NOT NULL CHECK (length(handshake_timestamp) = 8)
) STRICT, WITHOUT ROWID;

CREATE TABLE peer_addresses (
    public     BLOB NOT NULL REFERENCES peers ON DELETE CASCADE,
    address    TEXT NOT NULL,
    first_seen REAL NOT NULL,
    last_seen  REAL NOT NULL,
    identity   INTEGER NOT NULL CHECK (identity IN (0, 1)),  -- we contacted the peer at it
    PRIMARY KEY (public, address)
) STRICT, WITHOUT ROWID;

CREATE TABLE connections (
    cid          BLOB PRIMARY KEY CHECK (length(cid) = 8),
    peer         BLOB NOT NULL REFERENCES peers ON DELETE CASCADE,
    local        TEXT NOT NULL,                       -- socket tuple, "addr:port" or "[addr]:port"
    remote       TEXT NOT NULL,
    wire_local   TEXT NOT NULL,
    wire_remote  TEXT NOT NULL,
    initiator    INTEGER NOT NULL CHECK (initiator IN (0, 1)),
    local_epoch  BLOB NOT NULL CHECK (length(local_epoch) = 8),
    remote_epoch BLOB NOT NULL CHECK (length(remote_epoch) = 8),
    opened_at    REAL NOT NULL,
    moves        INTEGER NOT NULL,
    state        TEXT NOT NULL,
    command      TEXT,
    pid          INTEGER
) STRICT, WITHOUT ROWID;
