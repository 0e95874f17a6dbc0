"""Tables of runs.db; a new script at the end for every change."""

SCHEMA = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        flow_id TEXT NOT NULL,
        digest TEXT NOT NULL,
        engine_version TEXT NOT NULL,
        inputs BLOB NOT NULL,
        state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        created_at REAL NOT NULL,
        started_at REAL,
        finished_at REAL,
        owner TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        closed INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX runs_by_workspace ON runs (workspace, id);
    CREATE INDEX runs_open ON runs (id) WHERE closed = 0;
    CREATE TABLE run_events (
        run_id TEXT NOT NULL,
        seq INTEGER NOT NULL,
        type TEXT NOT NULL,
        node TEXT NOT NULL,
        item INTEGER,
        attempt INTEGER NOT NULL,
        payload BLOB NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (run_id, seq)
    ) WITHOUT ROWID;
    CREATE TABLE snapshots (
        digest TEXT PRIMARY KEY,
        document BLOB NOT NULL,
        manifests BLOB NOT NULL
    );
    CREATE TABLE idempotency (
        workspace TEXT NOT NULL,
        key TEXT NOT NULL,
        request TEXT NOT NULL,
        run_id TEXT NOT NULL,
        PRIMARY KEY (workspace, key)
    );
    CREATE TABLE flows (
        workspace TEXT NOT NULL,
        id TEXT NOT NULL,
        digest TEXT NOT NULL,
        document BLOB NOT NULL,
        created_at REAL NOT NULL,
        current INTEGER NOT NULL,
        PRIMARY KEY (workspace, id, digest)
    );
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,
        workspace TEXT NOT NULL,
        scopes TEXT NOT NULL,
        name TEXT NOT NULL,
        created_at REAL NOT NULL,
        revoked_at REAL
    );
    CREATE TABLE agents (
        directory TEXT PRIMARY KEY,
        added_at REAL NOT NULL
    );
    """,
)
