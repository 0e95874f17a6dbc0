"""The embedded blob store: one file an object, one sidecar beside it.

    <root>/.staging/<id>                bytes on their way in
    <root>/.staging/<id>.upload         what a resumable upload is, and its durable offset
    <root>/ws/_uploads/20261123/blob_x.jpg
    <root>/ws/_uploads/20261123/.blob_x.jpg.meta      BlobInfo as JSON, published before the bytes

Bytes are written below `.staging` (same file system), synced, then linked to the final name, which
cannot replace and is atomic: SIGKILL at any point leaves no partial object. Every path is walked
folder by folder without following symbolic links. All file work runs in a small pool of threads,
hashing included; one batch is written while the next one arrives.

    store    the port, on asyncio; knows no files
    tree     folders and sidecars: what is published, listed, removed
    staged   bytes on their way in: write, sync, hash, publish
    staged_upload, uploads   those that outlive a connection and a process
    reading  bytes on their way out
    disk     what an operating system says when it is full, and how it is made to write
"""

from mentatlab.storage.local.store import LocalStore

__all__ = ["LocalStore"]
