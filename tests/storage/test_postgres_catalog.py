"""The catalogue in Postgres: its own triggers, and what two servers do to one blob at once."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.support.postgres import postgres

from mentatlab.postgres import PostgresDatabase
from mentatlab.protocol.errors import Conflict, Fenced, NotFound, OutOfSpace
from mentatlab.protocol.pins import PinType
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.port import Blob
from mentatlab.storage.schema import POSTGRES
from mentatlab.storage.upkeep import Upkeep
from mentatlab.storage.upload_rows import Quota, UploadRow, UploadRows


@pytest.fixture
async def catalogs() -> AsyncIterator[tuple[Catalog, Catalog]]:
    """Those of two servers."""
    with postgres().database() as url:
        async with (
            PostgresDatabase(url, "catalog", POSTGRES) as one,
            PostgresDatabase(url, "catalog", POSTGRES) as other,
        ):
            yield Catalog(one), Catalog(other)


def blob(number: int, key: str = "") -> Blob:
    name = f"blob_{number:026}"
    return Blob(
        id=name,
        workspace="w",
        key=key or f"w/{name}",
        type=PinType.IMAGE,
        size=10,
        blake3="",
        sha256="",
        mime_type="image/png",
        metadata={"width": 1},
        filename="a.png",
        created_at=1.0,
        expires_at=None,
    )


def upload(name: str, reserved: int) -> UploadRow:
    return UploadRow(
        id=name,
        workspace="w",
        mode="tus",
        ref=f"blob_{name}",
        key=name,
        size=None,
        reserved=reserved,
        created_at=1.0,
        expires_at=100.0,
    )


async def test_a_blob_its_owners_and_its_end(catalogs: tuple[Catalog, Catalog]) -> None:
    one, other = catalogs
    upkeep = Upkeep(other.database)
    await one.add(blob(1), "run:1")
    assert await other.get(blob(1).id, workspace="w", now=2.0) == blob(1)
    assert await other.page("w", limit=9, before=None, now=2.0) == [blob(1)]
    await other.add_owner(blob(1).id, "run:2")
    with pytest.raises(Conflict, match="in use"):
        await one.doom(blob(1).id, ignoring="run:1")
    await asyncio.gather(one.release("run:1", now=3.0), other.release("run:2", now=3.0))
    assert await upkeep.doom(orphaned_before=3.0, expired_before=0.0, limit=9) == 1
    with pytest.raises(NotFound):
        await one.add_owner(blob(1).id, "run:3")
    assert [b.id for b in await upkeep.doomed(after="", limit=9)] == [blob(1).id]
    await one.forget([blob(1).id])
    assert await upkeep.is_empty()
    assert (await upkeep.identity()).startswith("cat_")


async def test_previews_count_nothing_and_go_with_their_source(
    catalogs: tuple[Catalog, Catalog],
) -> None:
    one, other = catalogs
    await one.add(blob(1), "run:1")
    preview = blob(2, key=f"w/_previews/{blob(1).id}/thumb")
    await other.add(preview, f"preview:{blob(1).id}")
    holdings = await Upkeep(other.database).holdings()
    assert (holdings.bytes, holdings.count) == (10, 1)
    assert await one.preview(blob(1).id, "a.png") == preview
    await one.doom(blob(1).id, ignoring="run:1")
    assert await one.preview(blob(1).id, "a.png") is None
    late = blob(3, key=f"w/_previews/{blob(1).id}/late")
    await other.add(late, f"preview:{blob(1).id}")
    doomed = await Upkeep(one.database).doomed(after="", limit=9)
    assert [b.id for b in doomed] == [blob(n).id for n in (1, 2, 3)]


async def test_two_servers_do_not_give_the_same_room_twice(
    catalogs: tuple[Catalog, Catalog],
) -> None:
    rows = [UploadRows(catalog.database, Quota(bytes=50)) for catalog in catalogs]
    said = await asyncio.gather(
        *(rows[n % 2].add(upload(f"up_{n}", 10)) for n in range(10)), return_exceptions=True
    )
    assert sum(isinstance(one, OutOfSpace) for one in said) == 5
    assert (await rows[0].usage("w")).reserved_bytes == 50


async def test_one_server_holds_an_upload_and_is_fenced_after(
    catalogs: tuple[Catalog, Catalog],
) -> None:
    one, other = (UploadRows(catalog.database, Quota()) for catalog in catalogs)
    await one.add(upload("up_1", 0))
    held = await one.lease("up_1", "a", now=1.0, until=11.0)
    assert held is not None
    assert await other.lease("up_1", "b", now=2.0, until=12.0) is None
    assert await other.lease("up_1", "b", now=12.0, until=22.0) is not None
    with pytest.raises(Fenced, match="UPLOAD_SUPERSEDED"):
        await one.record(held)
