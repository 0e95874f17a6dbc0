"""Everything from one store to another: verified, and resumed after a kill at any point."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from tests.support.seaweed import SeaweedProcess

from mentatlab.protocol.errors import Code, Conflict, Unavailable
from mentatlab.storage import StorageManager, open_storage, read_choice
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.local import LocalStore
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.migrate import Migrated, Migration
from mentatlab.storage.moving import Move, copy_segments, move
from mentatlab.storage.port import Blob, BlobStore, Reader
from mentatlab.storage.probe import Prober
from mentatlab.storage.upkeep import Upkeep
from mentatlab.storage.uploads import NewUpload
from mentatlab.testing.blob_store_contract import keys_of, pieces

KEY = "ml_key"
SIZES = (0, 1, 70_000, 3 << 20)


@contextlib.asynccontextmanager
async def storage_of(home: Path, environ: dict[str, str]) -> AsyncGenerator[StorageManager]:
    async with open_storage(read_choice(environ), home, home_key=KEY) as opened:
        yield opened.manager


async def filled(home: Path, *, count: int = 1) -> list[Blob]:
    async with storage_of(home, {}) as storage:
        await storage.life.sweep()
        return [
            await storage.store(
                pieces(body(n, size)), workspace="w", filename=f"{n}", sha256=n == 0
            )
            for n in range(count)
            for size in SIZES
        ]


def body(n: int, size: int) -> bytes:
    return bytes([n, 7, 255 - n]) * (size // 3) + b"." * (size % 3)


async def check_all(home: Path, environ: dict[str, str], blobs: list[Blob]) -> None:
    async with storage_of(home, environ) as storage:
        assert not (await storage.life.sweep()).foreign
        for blob in blobs:
            found = await storage.get(blob.id, workspace="w")
            assert found == blob
            async with contextlib.aclosing(await storage.open(found)) as reader:
                assert sum([len(chunk) async for chunk in reader]) == blob.size  # and verified
        report = await storage.life.scrub.check_all()
        assert (report.checked, report.corrupt_count) == (len(blobs), 0)


async def moved(how: Move, environ: dict[str, str]) -> tuple[Migrated, list[int]]:
    told: list[int] = []
    done = await move(
        how, home_key=KEY, environ=environ, tell=lambda so_far: told.append(so_far.done)
    )
    return done, told


async def test_to_s3_and_back(tmp_path: Path, seaweed: SeaweedProcess) -> None:
    home, environ = tmp_path / "home", {**seaweed.environment, "S3_BUCKET": "migrate"}
    blobs = await filled(home, count=2)
    there, told = await moved(Move(home, "local", "s3"), environ)
    assert (there.total, there.done, there.copied, there.corrupt_count) == (8, 8, 8, 0)
    assert there.bytes == there.total_bytes == 2 * sum(SIZES)
    assert told == list(range(9))
    again, _ = await moved(Move(home, "local", "s3"), environ)
    assert (again.done, again.copied) == (8, 0)
    await check_all(home, environ, blobs)
    folder = tmp_path / "elsewhere"
    back, _ = await moved(Move(home, "s3", "local", folder), environ)
    assert (back.done, back.copied) == (8, 8)
    (home / "blobs").rename(tmp_path / "old")
    folder.rename(home / "blobs")
    await check_all(home, {}, blobs)
    assert not (home / "migration.json").exists()


async def test_the_target_is_nobodys_before_everything_is_in_it(tmp_path: Path) -> None:
    """A server that is started on it too early finds nothing missing."""
    home, target = tmp_path / "home", LocalStore(tmp_path / "target")
    blobs = await filled(home)
    catalog = await Catalog.open(home / "catalog.db")
    source = LocalStore(home / "blobs")

    copying = target.put
    copied: list[str] = []

    async def put_two(key: str, *args: object, **more: object) -> object:
        if not key.startswith("_mentatlab/"):
            if len(copied) == 2:
                raise Unavailable(Code.STORE_UNAVAILABLE, "the line is cut")
            copied.append(key)
        return await copying(key, *args, **more)

    target.put = put_two
    with pytest.raises(BaseExceptionGroup):
        await migration_of(source, target, catalog, tmp_path).run()
    early = StorageManager(target, catalog, Prober())
    assert (await early.life.sweep()).foreign
    assert [(await early.get(b.id, workspace="w")).state for b in blobs] == ["ready"] * len(blobs)
    target.put = copying
    done = await migration_of(source, target, catalog, tmp_path).run()
    assert done.done == len(blobs)
    assert not (await early.life.sweep()).foreign
    for closed in (early, source):
        await closed.aclose()


def migration_of(source: BlobStore, target: BlobStore, catalog: Catalog, folder: Path) -> Migration:
    return Migration(
        source,
        target,
        Upkeep(catalog.database),
        name="target",
        journal=folder / "journal.json",
        tell=lambda _: None,
    )


async def test_what_is_damaged_stays_behind_and_is_told(tmp_path: Path) -> None:
    home = tmp_path / "home"
    empty, one, wrong, missing = await filled(home)
    for blob in (wrong, missing):
        path = home / "blobs" / blob.key
        path.chmod(0o600)
        path.write_bytes(b"?") if blob is wrong else path.unlink()
    done, _ = await moved(Move(home, "local", "local", tmp_path / "target"), {})
    assert (done.copied, done.corrupt_count) == (2, 2)
    assert set(done.corrupt) == {wrong.id, missing.id}
    async with storage_of(home, {}) as storage:
        states = [(await storage.get(b.id, workspace="w")).state for b in (empty, one, wrong)]
    assert states == ["ready", "ready", "corrupt"]
    target = LocalStore(tmp_path / "target")
    assert set(await keys_of(target.list())) == {"_mentatlab/catalog", empty.key, one.key}
    await target.aclose()


async def test_wrong_bytes_in_the_target_are_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    blobs = await filled(home)
    how = Move(home, "local", "local", tmp_path / "target")
    await moved(how, {})
    for name, damage in ((blobs[1].key, b"??"), (blobs[2].key, b"y" * 70_000)):
        path = tmp_path / "target" / name
        path.chmod(0o600)
        path.write_bytes(damage)
    done, _ = await moved(how, {})
    assert done.copied == 2
    (home / "blobs").rename(tmp_path / "old")
    (tmp_path / "target").rename(home / "blobs")
    await check_all(home, {}, blobs)


class Liar(MemoryStore):
    async def get(self, key: str, **more: object) -> Reader:
        found = self._object(key)
        self._objects[key] = found._replace(data=b"!" + found.data[1:])
        return await super().get(key)


async def test_a_target_that_keeps_something_else_ends_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    await filled(home)
    source, catalog = LocalStore(home / "blobs"), await Catalog.open(home / "catalog.db")
    with pytest.raises(BaseExceptionGroup) as group:
        await migration_of(source, Liar(), catalog, tmp_path).run()
    assert group.group_contains(Unavailable, match="does not give back")
    await source.aclose()
    await catalog.aclose()


async def test_stores_of_others_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    await filled(one)
    await filled(other)
    with pytest.raises(Conflict) as error:
        await moved(Move(one, "local", "local", other / "blobs"), {})
    assert error.value.code is Code.STORE_FOREIGN
    (one / "catalog.db").unlink()
    with pytest.raises(Conflict) as error:
        await moved(Move(one, "local", "local", tmp_path / "target"), {})
    assert error.value.code is Code.STORE_FOREIGN
    assert "rebuild" in error.value.hint


async def test_unfinished_uploads_are_counted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    await filled(home)
    async with storage_of(home, {}) as storage:
        row = await storage.uploads.create(NewUpload(workspace="w", size=9), "tus")
        await storage.uploads.append(row.id, pieces(b"x"), workspace="w", offset=0)
    done, _ = await moved(Move(home, "local", "local", tmp_path / "target"), {})
    assert done.open_uploads == 1


KILLED = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from mentatlab.storage.local import LocalStore
    from mentatlab.storage.local.tree import Tree
    from mentatlab.storage.migrate import Migration
    from mentatlab.storage.moving import Move, move

    left = int(sys.argv[3])

    def fatal(kind, name):
        real = getattr(kind, name)
        def call(self, *args, **more):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *args, **more)
        setattr(kind, name, call)

    for kind, names in (
        (LocalStore, ("put", "get", "delete", "head")),
        (Tree, ("publish", "remove")),
        (Migration, ("_write_journal", "_look")),
    ):
        for name in names:
            fatal(kind, name)
    how = Move(Path(sys.argv[1]), "local", "local", Path(sys.argv[2]))
    done = asyncio.run(move(how, home_key="k", environ={}, tell=lambda _: None))
    print(done.done)
"""


def migrate_until_killed(home: Path, target: Path, calls: int) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", textwrap.dedent(KILLED)]
    where = [str(home), str(target), str(calls)]
    return subprocess.run([*program, *where], capture_output=True, text=True, check=False)


async def test_killed_at_any_point_it_goes_on(tmp_path: Path) -> None:
    home, target = tmp_path / "home", tmp_path / "target"
    blobs = await filled(home, count=3)
    calls, killed = 3, 0
    while True:
        ended = await asyncio.to_thread(migrate_until_killed, home, target, calls)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        killed, calls = killed + 1, calls + 9
    assert killed >= 4
    assert json.loads(ended.stdout) == len(blobs)
    (home / "blobs").rename(tmp_path / "old")
    target.rename(home / "blobs")
    await check_all(home, {}, blobs)


async def test_sealed_runs_come_back_into_a_folder(tmp_path: Path) -> None:
    segments, folder = MemoryStore(), tmp_path / "sealed"
    for name in ("one", "two"):
        await segments.put(name, pieces(name.encode() * 1000))
    folder.mkdir()
    (folder / "one").write_bytes(b"one" * 1000)
    (folder / "two").write_bytes(b"cut off")
    await copy_segments(segments, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "one": b"one" * 1000,
        "two": b"two" * 1000,
    }
