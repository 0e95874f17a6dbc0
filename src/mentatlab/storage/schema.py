"""Tables of catalog.db, and of the same catalogue in Postgres; a new script at the end for every
change."""

SCHEMA = [
    """
    CREATE TABLE blobs (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        key TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        size INTEGER NOT NULL,
        blake3 TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        mime_type TEXT NOT NULL,
        metadata TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('ready', 'corrupt', 'deleting')),
        filename TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        orphaned_at REAL
    ) STRICT;
    CREATE INDEX blobs_by_workspace ON blobs (workspace, id);
    CREATE INDEX blobs_orphaned ON blobs (orphaned_at) WHERE orphaned_at IS NOT NULL;
    CREATE INDEX blobs_expiring ON blobs (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE blob_refs (
        owner TEXT NOT NULL,
        blob_id TEXT NOT NULL REFERENCES blobs (id),
        PRIMARY KEY (owner, blob_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX blob_refs_by_blob ON blob_refs (blob_id);
    """,
    """
    CREATE TABLE usage (
        workspace TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,
        count INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO usage SELECT workspace, sum(size), count(*) FROM blobs GROUP BY workspace;
    CREATE TRIGGER blob_counted AFTER INSERT ON blobs BEGIN
        INSERT INTO usage VALUES (new.workspace, new.size, 1)
        ON CONFLICT DO UPDATE SET bytes = bytes + new.size, count = count + 1;
    END;
    CREATE TRIGGER blob_discounted AFTER DELETE ON blobs BEGIN
        UPDATE usage SET bytes = bytes - old.size, count = count - 1
        WHERE workspace = old.workspace;
    END;
    CREATE TABLE uploads (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        mode TEXT NOT NULL CHECK (mode IN ('single', 'tus', 'direct')),
        ref TEXT NOT NULL UNIQUE,
        key TEXT NOT NULL UNIQUE,
        store_id TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'done')),
        size INTEGER,
        offset INTEGER NOT NULL,
        reserved INTEGER NOT NULL,
        expect TEXT,
        claims TEXT NOT NULL,
        filename TEXT NOT NULL,
        ttl_s REAL,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        holder TEXT NOT NULL,
        fence INTEGER NOT NULL,
        leased_until REAL NOT NULL
    ) STRICT;
    CREATE INDEX uploads_by_workspace ON uploads (workspace, id);
    CREATE INDEX uploads_expiring ON uploads (expires_at);
    ALTER TABLE blobs ADD COLUMN verified_at REAL;
    CREATE INDEX blobs_by_verification ON blobs (verified_at, id);
    """,
    # A preview, owned by `preview:<source>`, goes when its source goes, or comes too late to stay.
    """
    CREATE TRIGGER previews_go AFTER UPDATE OF state ON blobs WHEN new.state = 'deleting' BEGIN
        UPDATE blobs SET state = 'deleting'
        WHERE id IN (SELECT blob_id FROM blob_refs WHERE owner = 'preview:' || new.id);
    END;
    CREATE TRIGGER preview_too_late AFTER INSERT ON blob_refs
    WHEN new.owner GLOB 'preview:*' AND NOT EXISTS (
        SELECT 1 FROM blobs WHERE id = substr(new.owner, 9) AND state <> 'deleting'
    ) BEGIN
        UPDATE blobs SET state = 'deleting' WHERE id = new.blob_id;
    END;
    """,
    # Who this catalogue is, for the store that it speaks of; and the few rows that are not ready.
    """
    CREATE TABLE identity (id TEXT NOT NULL) STRICT;
    INSERT INTO identity VALUES ('cat_' || lower(hex(randomblob(13))));
    CREATE INDEX blobs_not_ready ON blobs (state, id) WHERE state <> 'ready';
    """,
    # What open uploads have reserved is added up for every new one.
    "CREATE INDEX uploads_open ON uploads (workspace, reserved) WHERE state = 'open';",
    # Previews are the server's own: they take nothing of a workspace's quota.
    """
    DROP TRIGGER blob_counted;
    DROP TRIGGER blob_discounted;
    CREATE TRIGGER blob_counted AFTER INSERT ON blobs
    WHEN new.key NOT GLOB '*/_previews/blob_??????????????????????????/*' BEGIN
        INSERT INTO usage VALUES (new.workspace, new.size, 1)
        ON CONFLICT DO UPDATE SET bytes = bytes + new.size, count = count + 1;
    END;
    CREATE TRIGGER blob_discounted AFTER DELETE ON blobs
    WHEN old.key NOT GLOB '*/_previews/blob_??????????????????????????/*' BEGIN
        UPDATE usage SET bytes = bytes - old.size, count = count - 1
        WHERE workspace = old.workspace;
    END;
    DELETE FROM usage;
    INSERT INTO usage SELECT workspace, sum(size), count(*) FROM blobs
        WHERE key NOT GLOB '*/_previews/blob_??????????????????????????/*' GROUP BY workspace;
    """,
]

POSTGRES = [
    r"""
    CREATE TABLE blobs (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        key TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        size INTEGER NOT NULL,
        blake3 TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        mime_type TEXT NOT NULL,
        metadata TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('ready', 'corrupt', 'deleting')),
        filename TEXT NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        orphaned_at REAL,
        verified_at REAL
    );
    CREATE INDEX blobs_by_workspace ON blobs (workspace, id);
    CREATE INDEX blobs_orphaned ON blobs (orphaned_at) WHERE orphaned_at IS NOT NULL;
    CREATE INDEX blobs_expiring ON blobs (expires_at) WHERE expires_at IS NOT NULL;
    CREATE INDEX blobs_by_verification ON blobs (verified_at, id);
    CREATE INDEX blobs_not_ready ON blobs (state, id) WHERE state <> 'ready';
    CREATE TABLE blob_refs (
        owner TEXT NOT NULL,
        blob_id TEXT NOT NULL,
        PRIMARY KEY (owner, blob_id)
    );
    CREATE INDEX blob_refs_by_blob ON blob_refs (blob_id);
    CREATE TABLE uploads (
        id TEXT PRIMARY KEY,
        workspace TEXT NOT NULL,
        mode TEXT NOT NULL CHECK (mode IN ('single', 'tus', 'direct')),
        ref TEXT NOT NULL UNIQUE,
        key TEXT NOT NULL UNIQUE,
        store_id TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'done')),
        size INTEGER,
        "offset" INTEGER NOT NULL,
        reserved INTEGER NOT NULL,
        expect TEXT,
        claims TEXT NOT NULL,
        filename TEXT NOT NULL,
        ttl_s REAL,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        holder TEXT NOT NULL,
        fence INTEGER NOT NULL,
        leased_until REAL NOT NULL
    );
    CREATE INDEX uploads_by_workspace ON uploads (workspace, id);
    CREATE INDEX uploads_expiring ON uploads (expires_at);
    CREATE INDEX uploads_open ON uploads (workspace, reserved) WHERE state = 'open';
    CREATE TABLE identity (id TEXT NOT NULL);
    INSERT INTO identity VALUES ('cat_' || left(replace(gen_random_uuid()::text, '-', ''), 26));

    CREATE TABLE usage (
        workspace TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,
        count INTEGER NOT NULL
    );
    CREATE FUNCTION count_blob() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO usage VALUES (new.workspace, new.size, 1)
        ON CONFLICT (workspace) DO UPDATE
        SET bytes = usage.bytes + new.size, count = usage.count + 1;
        RETURN NULL;
    END $$;
    CREATE FUNCTION discount_blob() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE usage SET bytes = bytes - old.size, count = count - 1
        WHERE workspace = old.workspace;
        RETURN NULL;
    END $$;
    CREATE TRIGGER blob_counted AFTER INSERT ON blobs FOR EACH ROW
    WHEN (new.key !~ '/_previews/blob_.{26}/') EXECUTE FUNCTION count_blob();
    CREATE TRIGGER blob_discounted AFTER DELETE ON blobs FOR EACH ROW
    WHEN (old.key !~ '/_previews/blob_.{26}/') EXECUTE FUNCTION discount_blob();

    CREATE FUNCTION let_previews_go() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE blobs SET state = 'deleting'
        WHERE id IN (SELECT blob_id FROM blob_refs WHERE owner = 'preview:' || new.id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER previews_go AFTER UPDATE OF state ON blobs FOR EACH ROW
    WHEN (new.state = 'deleting') EXECUTE FUNCTION let_previews_go();
    CREATE FUNCTION refuse_late_preview() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM 1 FROM blobs
        WHERE id = substr(new.owner, 9) AND state <> 'deleting' FOR SHARE;
        IF NOT FOUND THEN
            UPDATE blobs SET state = 'deleting' WHERE id = new.blob_id;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER preview_too_late AFTER INSERT ON blob_refs FOR EACH ROW
    WHEN (new.owner LIKE 'preview:%') EXECUTE FUNCTION refuse_late_preview();
    """,
]
"""Its words for types are SQLite's here too (`postgres.py`)."""
