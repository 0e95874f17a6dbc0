"""Tables of runs.db; a new script at the end for every change.

The same scripts make them in Postgres, which reads SQLite's words for types as its own
(`postgres.py`). So: TEXT, INTEGER, REAL, BLOB; no triggers, no functions.
"""

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
    # Which engine lives, what others ask of it, its checkpoints, results to be used again.
    """
    ALTER TABLE runs ADD COLUMN origin TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN from_node TEXT NOT NULL DEFAULT '';
    ALTER TABLE runs ADD COLUMN trigger_name TEXT NOT NULL DEFAULT '';
    CREATE INDEX runs_by_owner ON runs (owner) WHERE closed = 0;
    CREATE TABLE engines (
        id TEXT PRIMARY KEY,
        lease_until REAL NOT NULL
    );
    CREATE TABLE requests (
        id TEXT PRIMARY KEY,
        run_id TEXT NOT NULL,
        request BLOB NOT NULL
    );
    CREATE INDEX requests_by_run ON requests (run_id);
    CREATE TABLE checkpoints (
        run_id TEXT NOT NULL,
        node TEXT NOT NULL,
        item INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (run_id, node, item)
    );
    CREATE TABLE cache (
        workspace TEXT NOT NULL,
        key TEXT NOT NULL,
        run_id TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (workspace, key)
    );
    CREATE INDEX cache_by_run ON cache (run_id);
    """,
    # Secrets by name.
    """
    CREATE TABLE secrets (
        workspace TEXT NOT NULL,
        name TEXT NOT NULL,
        sealed BLOB NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        PRIMARY KEY (workspace, name)
    );
    """,
    # Schedules and their ticks.
    """
    CREATE TABLE schedules (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        paused INTEGER NOT NULL,
        next_at REAL NOT NULL,
        body BLOB NOT NULL
    );
    CREATE INDEX schedules_by_time ON schedules (next_at) WHERE paused = 0;
    CREATE TABLE ticks (
        id TEXT PRIMARY KEY,
        schedule_id TEXT NOT NULL,
        at REAL NOT NULL,
        state TEXT NOT NULL,
        run_id TEXT NOT NULL,
        error TEXT NOT NULL,
        lease_until REAL NOT NULL
    );
    CREATE INDEX ticks_by_schedule ON ticks (schedule_id, at);
    CREATE INDEX ticks_due ON ticks (at) WHERE state = 'due';
    """,
    # Webhooks, and the calls that were accepted of late.
    """
    CREATE TABLE webhooks (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        sealed BLOB NOT NULL,
        body BLOB NOT NULL
    );
    CREATE TABLE webhook_calls (
        webhook_id TEXT NOT NULL,
        signature TEXT NOT NULL,
        at REAL NOT NULL,
        PRIMARY KEY (webhook_id, signature)
    );
    CREATE INDEX webhook_calls_by_time ON webhook_calls (at);
    """,
    # Who is told of runs' ends (`run_id`: of this one only), and what is to be told.
    """
    CREATE TABLE subscriptions (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        run_id TEXT NOT NULL,
        flow_id TEXT NOT NULL,
        events TEXT NOT NULL,
        url TEXT NOT NULL,
        sealed BLOB NOT NULL,
        body BLOB NOT NULL,
        stopped_at REAL NOT NULL
    );
    CREATE INDEX subscriptions_by_run ON subscriptions (workspace, run_id);
    CREATE TABLE deliveries (
        id TEXT PRIMARY KEY,
        subscription_id TEXT NOT NULL,
        workspace TEXT NOT NULL,
        run_id TEXT NOT NULL,
        event TEXT NOT NULL,
        url TEXT NOT NULL,
        body BLOB NOT NULL,
        state TEXT NOT NULL,
        created_at REAL NOT NULL,
        since REAL NOT NULL,
        next_at REAL NOT NULL,
        lease_until REAL NOT NULL,
        attempts INTEGER NOT NULL,
        ended_at REAL NOT NULL,
        status INTEGER NOT NULL,
        error TEXT NOT NULL
    );
    CREATE INDEX deliveries_due ON deliveries (next_at) WHERE state = 'waiting';
    CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE state <> 'waiting';
    CREATE INDEX deliveries_by_workspace ON deliveries (workspace, id);
    CREATE INDEX deliveries_by_subscription ON deliveries (subscription_id, id);
    CREATE INDEX deliveries_by_run ON deliveries (run_id);
    """,
    # How many runs of a workspace wait for their turn.
    """
    CREATE INDEX runs_waiting ON runs (workspace, state) WHERE state = 'queued';
    """,
)
