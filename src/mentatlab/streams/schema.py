"""The tables of the log in SQLite, and how older ones become them."""

SCHEMA = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, workspace TEXT NOT NULL,
        head INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE lanes (
        id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs,
        node_id TEXT NOT NULL, pin_name TEXT NOT NULL, stream_id TEXT NOT NULL UNIQUE,
        lane TEXT NOT NULL, -- JSON of `Lane`
        UNIQUE (run, node_id, pin_name)
    );
    CREATE TABLE records (
        run INTEGER NOT NULL, lane INTEGER NOT NULL,
        sequence INTEGER NOT NULL, rseq INTEGER, type TEXT NOT NULL,
        size INTEGER NOT NULL, -- bytes of the payload's JSON
        producer TEXT, producer_epoch INTEGER, producer_seq INTEGER,
        record BLOB NOT NULL -- JSON of `StreamChunk`
    );
    CREATE UNIQUE INDEX records_by_lane ON records (lane, sequence);
    CREATE UNIQUE INDEX records_by_run ON records (run, rseq);
    CREATE TABLE producers (
        lane INTEGER NOT NULL, producer TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY (lane, producer)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE records DROP COLUMN producer;
    ALTER TABLE records DROP COLUMN producer_epoch;
    ALTER TABLE records DROP COLUMN producer_seq;
    ALTER TABLE records RENAME COLUMN record TO json; -- JSON of `StreamChunk`
    ALTER TABLE records ADD COLUMN frame BLOB; -- of a binary record
    ALTER TABLE records ADD COLUMN time_ms INTEGER NOT NULL DEFAULT 0; -- Unix
    UPDATE records SET time_ms = unixepoch(json_extract(CAST(json AS TEXT), '$.timestamp')) * 1000;
    ALTER TABLE producers ADD COLUMN places TEXT NOT NULL DEFAULT '[]';
    """,
    """
    -- a large record's frame (without one: its JSON, and json is empty) lies in a segment file
    ALTER TABLE records ADD COLUMN file INTEGER;
    ALTER TABLE records ADD COLUMN file_offset INTEGER;
    ALTER TABLE records ADD COLUMN file_length INTEGER;
    ALTER TABLE records ADD COLUMN file_crc INTEGER;
    CREATE INDEX records_by_file ON records (file) WHERE file IS NOT NULL;
    -- when retention asks for the lane's next step; Unix seconds
    ALTER TABLE lanes ADD COLUMN due REAL;
    UPDATE lanes SET due = json_extract(lane, '$.changed_at') + json_extract(
        lane, '$.retention.' || iif(json_extract(lane, '$.state') IS NULL, 'ttl_s', 'retain_s')
    ) WHERE json_extract(lane, '$.state') IS NOT 'expired';
    CREATE INDEX lanes_by_due ON lanes (due) WHERE due IS NOT NULL;
    """,
    """
    -- the file of a sealed run, and where its order begins, its length, the last rseq
    ALTER TABLE runs ADD COLUMN segment TEXT;
    ALTER TABLE runs ADD COLUMN segment_order TEXT; -- JSON of `sealed.Order`
    -- since when all commit lanes have ended; NULL when some are open, or nothing is to be sealed
    ALTER TABLE runs ADD COLUMN idle_since REAL;
    ALTER TABLE runs ADD COLUMN clearing INTEGER NOT NULL DEFAULT 0; -- of rows
    CREATE INDEX runs_to_clear ON runs (id) WHERE clearing;
    CREATE INDEX runs_by_idle ON runs (idle_since) WHERE idle_since IS NOT NULL;
    ALTER TABLE lanes ADD COLUMN part TEXT; -- in the run's segment: JSON of `sealed.Part`
    ALTER TABLE lanes ADD COLUMN open INTEGER NOT NULL DEFAULT 0; -- a commit lane that is
    UPDATE lanes SET open = json_extract(lane, '$.durability') IS NULL
        AND json_extract(lane, '$.state') IS NULL;
    CREATE INDEX lanes_open ON lanes (run) WHERE open;
    UPDATE runs SET idle_since =
        (SELECT max(json_extract(lane, '$.changed_at')) FROM lanes WHERE lanes.run = runs.id)
        WHERE NOT EXISTS (SELECT 1 FROM lanes WHERE lanes.run = runs.id AND open);
    -- segments to be deleted: of runs that are gone, or never finished
    CREATE TABLE garbage (segment TEXT PRIMARY KEY) WITHOUT ROWID;
    """,
    """
    -- who publishes from outside; `until` in Unix seconds, `producers` a JSON list
    CREATE TABLE leases (
        stream_id TEXT PRIMARY KEY, holder TEXT NOT NULL, producers TEXT NOT NULL,
        until REAL NOT NULL
    ) WITHOUT ROWID;
    """,
)
