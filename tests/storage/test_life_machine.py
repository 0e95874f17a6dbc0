"""Catalogue and store against a model: whatever is stored, needed, released, deleted, damaged, lost
and rebuilt, beside sweepers between any two steps of which all of that happens again."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mentatlab.protocol.errors import Code, Gone, Internal, MentatError, NotFound
from mentatlab.protocol.ids import new_id
from mentatlab.storage import StorageManager
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.hashing import ContentHash
from mentatlab.storage.life import EXPIRED_GRACE_S, GRACE_S
from mentatlab.storage.memory import MemoryStore
from mentatlab.storage.port import Blob, BlobInfo
from mentatlab.storage.probe import Prober
from mentatlab.storage.uploads import NewUpload
from mentatlab.testing.blob_store_contract import pieces

T = TypeVar("T")
HOUR = 3600.0
OWNERS = st.sampled_from(["run:1", "run:2", "stream:1"])
PICKS = st.integers(0, 1000)
ACTIONS = st.lists(st.sampled_from(["own", "release", "store", "delete", "sweep"]), max_size=12)


class ModelStore(MemoryStore):
    """On the model's clock; `between` is called before each call that a sweeper makes. An object
    that came by an upload looks as old as can be: its bytes may have come long before its end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock

    def publish(
        self,
        key: str,
        data: bytes,
        content_type: str,
        meta: dict[str, Any],
        hash_: ContentHash,
        *,
        upload: str = "",
    ) -> BlobInfo:
        info = super().publish(key, data, content_type, meta, hash_, upload=upload)
        info = msgspec.structs.replace(info, modified_at=0.0 if upload else self.clock())
        self._objects[key] = self._objects[key]._replace(info=info)
        return info

    def present(self) -> set[str]:
        return {key for key in self._objects if not key.startswith("_mentatlab/")}

    def flip(self, key: str) -> None:
        found = self._objects[key]
        self._objects[key] = found._replace(data=bytes(255 - b for b in found.data))

    async def aclose(self) -> None:
        """Others have it open too."""


class Interrupted(ModelStore):
    """The same objects, as a sweeper has them."""

    def __init__(self, there: ModelStore, between: Callable[[], Awaitable[None]]) -> None:
        super().__init__(there.clock)
        self._objects, self._uploads, self._between = there._objects, there._uploads, between

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[BlobInfo]:
        async for info in super().list(prefix, after):
            await self._between()
            yield info

    async def head(self, key: str) -> BlobInfo:
        await self._between()
        return await super().head(key)

    async def delete(self, key: str) -> None:
        await self._between()
        await super().delete(key)


@dataclass
class Known:
    """A blob as the model sees it."""

    blob: Blob
    data: bytes
    owners: set[str] = field(default_factory=set[str])
    orphaned_at: float | None = None
    flipped: bool = False  # its bytes are wrong
    corrupt: bool = False  # and that was seen

    def is_expired(self, now: float) -> bool:
        return self.blob.expires_at is not None and self.blob.expires_at <= now

    def may_go(self, now: float) -> bool:
        orphaned = self.orphaned_at is not None and self.orphaned_at <= now - GRACE_S
        expires = self.blob.expires_at
        return orphaned or (expires is not None and expires <= now - EXPIRED_GRACE_S)


class LifeMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1_795_437_754.0
        self.made = 0
        self.blobs: dict[str, Known] = {}
        self.orphans: dict[str, float] = {}  # by key: since when
        self.open: dict[str, tuple[str, bytes]] = {}  # uploads: what they will be
        self.actions: list[str] = []
        self.store = ModelStore(lambda: self.now)
        self.database = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def manager(self, store: ModelStore) -> StorageManager:
        catalog = await Catalog.open(Path(self.folder.name, f"catalog-{self.database}.db"))
        return StorageManager(store, catalog, Prober(), clock=lambda: self.now)

    @initialize()
    def begin(self) -> None:
        """As a server starts: its first sweep finds both sides empty."""
        self.front = self.run(self.manager(self.store))
        self.run(self.front.life.sweep())

    def teardown(self) -> None:
        self.run(self.front.aclose())
        self.runner.close()
        self.folder.cleanup()

    # --- what the house does

    async def _store(self, owner: str | None, ttl_s: float | None = None) -> None:
        self.made += 1
        data = f"blob {self.made}".encode()
        blob = await self.front.store(pieces(data), workspace="w", owner=owner, ttl_s=ttl_s)
        self.blobs[blob.id] = Known(blob, data, {owner or f"upload:{blob.id}"})

    @rule(owner=OWNERS | st.none(), ttl_s=st.sampled_from([None, None, HOUR, 30 * HOUR]))
    def store_one(self, owner: str | None, ttl_s: float | None) -> None:
        self.run(self._store(owner, ttl_s))

    def _pick(self, pick: int) -> Known | None:
        known = list(self.blobs.values())
        return known[pick % len(known)] if known else None

    async def _own(self, known: Known, owner: str) -> None:
        try:
            await self.front.add_owner(known.blob.id, owner)
        except NotFound:
            assert known.may_go(self.now)  # a sweep has marked it
            return
        known.owners.add(owner)
        known.orphaned_at = None

    @rule(pick=PICKS, owner=OWNERS)
    def own(self, pick: int, owner: str) -> None:
        if known := self._pick(pick):
            self.run(self._own(known, owner))

    async def _release(self, owner: str) -> None:
        await self.front.release(owner)
        for known in self.blobs.values():
            if owner in known.owners:
                known.owners.discard(owner)
                if not known.owners:
                    known.orphaned_at = self.now

    @rule(owner=OWNERS)
    def release(self, owner: str) -> None:
        self.run(self._release(owner))

    async def _delete(self, known: Known) -> None:
        needed = known.owners - {f"upload:{known.blob.id}"}
        try:
            await self.front.delete(known.blob.id, workspace="w")
        except MentatError as error:
            fine = {
                Code.CONFLICT: bool(needed),
                Code.REFERENCE_EXPIRED: known.is_expired(self.now),
                Code.REFERENCE_NOT_FOUND: known.may_go(self.now),
            }
            if not fine.get(error.code):
                raise
            return
        assert not needed
        del self.blobs[known.blob.id]

    @rule(pick=PICKS)
    def delete(self, pick: int) -> None:
        if known := self._pick(pick):
            self.run(self._delete(known))

    @rule(hours=st.sampled_from([0.5, 2, 11, 23, 25]))
    def wait(self, hours: float) -> None:
        self.now += hours * HOUR

    # --- what a crash leaves

    @rule()
    def crash_between_bytes_and_row(self) -> None:
        ref = new_id("blob")
        meta = {"ref": ref, "workspace": "w", "expect": None, "filename": "", "claims": {}}
        meta |= {"created_at": self.now, "expires_at": None}
        key = f"w/_uploads/lost/{ref}.bin"
        self.run(self.store.put(key, pieces(b"lost"), meta=meta))
        self.orphans[key] = self.now

    @rule(crash=st.booleans())
    def begin_upload(self, crash: bool) -> None:
        """With a crash: the object has its name, and its row is yet to come."""

        async def work() -> None:
            self.made += 1
            data = f"upload {self.made}".encode()
            uploads = self.front.uploads
            row = await uploads.create(NewUpload(workspace="w", size=len(data) + 1), "tus")
            row = await uploads.append(row.id, pieces(data), workspace="w", offset=0)
            if crash:
                upload = await self.store.resume_upload(row.store_id)
                await upload.write(pieces(b"."))
                await upload.complete()
            self.open[row.id] = row.ref, data + b"."

        self.run(work())

    @precondition(lambda self: self.open)
    @rule(pick=PICKS)
    def end_upload(self, pick: int) -> None:
        async def work() -> None:
            upload_id = list(self.open)[pick % len(self.open)]
            ref, data = self.open.pop(upload_id)
            uploads = self.front.uploads
            try:
                row = await uploads.pause(upload_id, workspace="w")
                if row.state == "open":
                    offset = row.offset
                    await uploads.append(
                        upload_id, pieces(data[offset:]), workspace="w", offset=offset
                    )
            except (Gone, NotFound):  # a day without bytes
                self.orphans |= {key: 0.0 for key in self.store.present() if ref in key}
                return
            blob = await self.front.get(ref, workspace="w")
            self.blobs[ref] = Known(blob, data, {f"upload:{ref}"})

        self.run(work())

    @rule(pick=PICKS)
    def flip(self, pick: int) -> None:
        known = self._pick(pick)
        if known and known.blob.key in self.store.present():
            self.store.flip(known.blob.key)
            known.flipped = not known.flipped

    # --- housekeeping

    async def _act(self) -> None:
        """Something else happens, in the middle of a sweep."""
        if not self.actions:
            return
        action, known = self.actions.pop(), self._pick(len(self.actions))
        match action:
            case "own" if known:
                await self._own(known, "run:1")
            case "release":
                await self._release("run:1")
            case "store":
                await self._store("run:2")
            case "delete" if known:
                await self._delete(known)
            case "sweep":
                await self._sweep()
            case _:
                pass

    async def _sweep(self) -> None:
        sweeper = await self.manager(Interrupted(self.store, self._act))
        try:
            await sweeper.life.sweep()
        finally:
            await sweeper.aclose()

    @rule(actions=ACTIONS)
    def sweep_among_others(self, actions: list[str]) -> None:
        self.actions = actions
        self.run(self._sweep())
        self.actions = []
        self.forget_what_may_be_gone()

    @rule()
    def sweep_in_peace(self) -> None:
        """Nothing that may go stays."""
        self.run(self.front.life.sweep())
        for known in [k for k in self.blobs.values() if k.may_go(self.now)]:
            assert known.blob.key not in self.store.present()
            del self.blobs[known.blob.id]
        for key, since in list(self.orphans.items()):
            if since < self.now - GRACE_S:
                assert key not in self.store.present()
                del self.orphans[key]

    def forget_what_may_be_gone(self) -> None:
        keys = self.store.present()
        gone = [k for k in self.blobs.values() if k.may_go(self.now) and k.blob.key not in keys]
        for known in gone:
            del self.blobs[known.blob.id]

    @rule()
    def scrub(self) -> None:
        self.run(self.front.life.scrub.check_all())
        for known in self.blobs.values():
            known.corrupt = known.flipped

    @rule(rebuilt=st.booleans())
    def lose_the_catalogue(self, rebuilt: bool) -> None:
        """A sweep by the new one takes nothing; a rebuilt one knows everything that is there."""
        self.sweep_in_peace()
        self.run(self.front.aclose())
        before, self.database = self.database, self.database + 1
        self.front = self.run(self.manager(self.store))
        keys = self.store.present()
        self.now += 2 * GRACE_S
        swept = self.run(self.front.life.sweep())
        assert self.store.present() == keys
        assert swept.foreign or not keys
        if rebuilt:
            self.run(self.front.life.rebuild())
            self.run(self.take_stock())
            return
        self.now -= 2 * GRACE_S
        self.run(self.front.aclose())
        self.database = before  # it was found again
        self.front = self.run(self.manager(self.store))

    async def take_stock(self) -> None:
        """After a rebuild: who needed it is forgotten, what is there is not."""
        self.open, self.orphans = {}, {}
        before, self.blobs = self.blobs, {}
        for key in self.store.present():
            meta = (await self.store.head(key)).meta
            data = b"".join([chunk async for chunk in await self.store.get(key)])
            blob = await self.front.get(meta["ref"], workspace="w")
            known = before.get(meta["ref"]) or Known(blob, data)
            known.blob, known.owners = blob, {f"upload:{blob.id}"}
            known.orphaned_at, known.corrupt = None, False
            self.blobs[blob.id] = known

    # --- what always holds

    @invariant()
    def what_is_needed_is_there(self) -> None:
        async def work() -> None:
            for known in self.blobs.values():
                if not known.may_go(self.now):
                    await self.check(known)

        if self.blobs:
            self.run(work())

    async def check(self, known: Known) -> None:
        ref = known.blob.id
        if known.is_expired(self.now):
            with pytest.raises(Gone):
                await self.front.get(ref, workspace="w")
            return
        with pytest.raises(NotFound):
            await self.front.get(ref, workspace="another")
        blob = await self.front.get(ref, workspace="w")
        assert blob.state == ("corrupt" if known.corrupt else "ready")
        if known.flipped or known.corrupt:
            with pytest.raises(Internal):
                [chunk async for chunk in await self.front.open(blob)]
            known.corrupt = True
            return
        assert b"".join([chunk async for chunk in await self.front.open(blob)]) == known.data


class TestLife(LifeMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestLifeForLong(LifeMachine.TestCase):
    settings = settings(max_examples=400, stateful_step_count=60, deadline=None)
