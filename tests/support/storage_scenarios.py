"""What is killed at every step: puts and uploads, of a store and of the whole manager."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from mentatlab.storage.local import LocalStore
from mentatlab.storage.manager import open_local
from mentatlab.storage.uploads import NewUpload
from mentatlab.testing.blob_store_contract import pieces

DATA = bytes(range(256)) * (5 << 12)  # 5 MiB: two batches
TAIL = b"and its end"
WHOLE = DATA + TAIL


def put(root: Path, arm: Callable[[], None], say: Callable[[str], None]) -> None:
    async def main() -> None:
        store = LocalStore(root)
        arm()
        await store.put("ws/_uploads/k", pieces(WHOLE))
        say("put")
        await store.aclose()

    asyncio.run(main())


def upload(root: Path, arm: Callable[[], None], say: Callable[[str], None]) -> None:
    async def main() -> None:
        store = LocalStore(root)
        arm()
        opened = await store.open_upload("ws/_uploads/k", size=len(WHOLE))
        say(opened.id)
        await opened.write(pieces(DATA))
        say(str(await opened.checkpoint()))
        await opened.write(pieces(TAIL))
        await opened.complete()
        say("complete")
        await store.aclose()

    asyncio.run(main())


def store(root: Path, arm: Callable[[], None], say: Callable[[str], None]) -> None:
    async def main() -> None:
        async with open_local(root / "blobs", root / "catalog.db") as manager:
            await manager.life.sweep()  # as a server does when it starts
            arm()
            blob = await manager.store(pieces(WHOLE), workspace="ws", filename="whole")
            say(blob.id)

    asyncio.run(main())


def resumable(root: Path, arm: Callable[[], None], say: Callable[[str], None]) -> None:
    async def main() -> None:
        async with open_local(root / "blobs", root / "catalog.db") as manager:
            await manager.life.sweep()  # as a server does when it starts
            arm()
            row = await manager.uploads.create(NewUpload(workspace="ws", size=len(WHOLE)), "tus")
            say(row.id)
            row = await manager.uploads.append(row.id, pieces(DATA), workspace="ws", offset=0)
            say(str(row.offset))
            row = await manager.uploads.append(
                row.id, pieces(TAIL), workspace="ws", offset=len(DATA)
            )
            say(row.state)

    asyncio.run(main())
