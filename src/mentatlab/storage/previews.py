"""Small pictures of stored media, made when first asked for and kept beside them.

A preview is a blob like any other, owned by `preview:<source>`: the catalogue dooms it with its
source, and neither lists it nor gives it another owner. It is made in the limited workers.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from mentatlab.protocol.errors import Code, Invalid, NotFound, UnsupportedMedia
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.pins import PinType
from mentatlab.storage import keys, sniff, sources
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.port import Blob, BlobStore
from mentatlab.storage.verified import damaged
from mentatlab.storage.workers import Limits, MediaFailed, MediaWorkers, media_of

Preview = Literal["thumb", "poster", "waveform"]
PreviewFormat = Literal["webp", "png"]

SIZES = (64, 128, 256, 512, 1024)
"""Pixels of the longer side; what is asked for is rounded up, so that few are kept."""
_MAX_BODY = 8 << 20  # bytes of one preview: 1024 × 1024 of RGBA are at most 4 MiB
_LIMITS = {
    "thumb": Limits(cpu_s=10, wall_s=20, read=256 << 20, body=_MAX_BODY),
    "poster": Limits(cpu_s=10, wall_s=20, read=128 << 20, body=_MAX_BODY),
    # about four hours of sound, read to its end
    "waveform": Limits(cpu_s=30, wall_s=60, read=4 << 30, body=_MAX_BODY),
}
_WAYS: dict[tuple[Preview, PinType], Preview] = {
    ("thumb", PinType.IMAGE): "thumb",
    ("thumb", PinType.VIDEO): "poster",
    ("thumb", PinType.AUDIO): "waveform",
    ("poster", PinType.VIDEO): "poster",
    ("waveform", PinType.AUDIO): "waveform",
    ("waveform", PinType.VIDEO): "waveform",
}
_REMEMBERED_S = 60.0  # for which what failed is not tried again
_REMEMBERED = 256  # failures


class _Order(NamedTuple):
    source: str
    way: Preview
    pixels: int
    format: PreviewFormat

    @property
    def name(self) -> str:
        return f"{self.way}-{self.pixels}.{self.format}"


class Previews:
    """`workers` are not those that probe: uploads do not wait for previews."""

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        *,
        clock: Callable[[], float],
        workers: MediaWorkers | None = None,
    ) -> None:
        self._store, self._catalog = store, catalog
        self._clock = clock
        self._workers = workers or MediaWorkers(size=1)
        self._making: dict[_Order, asyncio.Task[Blob]] = {}
        self._failed: OrderedDict[_Order, tuple[float, str]] = OrderedDict()

    async def of(
        self, blob: Blob, preview: Preview, *, size: int = 256, format: PreviewFormat = "webp"
    ) -> Blob:
        """The preview's own blob: `thumb` of an image, film or sound; `poster`, a frame of a film;
        `waveform` of a sound or a film. `size` 1 to 1024 pixels, the longer side.

        `UnsupportedMedia(PREVIEW_UNAVAILABLE)` when there is none.
        """
        way = _WAYS.get((preview, sniff.family(blob.mime_type)))
        if way is None:
            raise _unavailable(f"{blob.id} is {blob.mime_type}: of that there is no {preview}")
        if blob.state != "ready":
            raise damaged(blob)
        order = _Order(blob.id, way, _rounded(size), format)
        made = await self._catalog.preview(blob.id, order.name)
        return made or await asyncio.shield(self._task(order, blob))

    @property
    def pids(self) -> list[int]:
        """Of the processes that make them."""
        return self._workers.pids

    async def aclose(self) -> None:
        for task in self._making.values():
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)
        await self._workers.aclose()

    def _task(self, order: _Order, blob: Blob) -> asyncio.Task[Blob]:
        """One for all who ask meanwhile; it goes on when they leave."""
        task = self._making.get(order)
        if task is None:
            task = asyncio.create_task(self._make(order, blob), name=f"preview {order.name}")
            self._making[order] = task
            task.add_done_callback(lambda done: self._finish(order, done))
        return task

    def _finish(self, order: _Order, task: asyncio.Task[Blob]) -> None:
        del self._making[order]
        if not task.cancelled():
            task.exception()  # somebody may still wait for it, or nobody

    async def _make(self, order: _Order, blob: Blob) -> Blob:
        self._refuse_failed(order)
        media = await media_of(self._store, blob.key, blob.size)
        said = {"preview": order.way, "pixels": order.pixels, "format": order.format}
        try:
            found, body = await self._workers.run(said, media, _LIMITS[order.way])
        except MediaFailed as error:
            self._remember(order, str(error))
            raise _unavailable(str(error)) from error
        await self._keep(order, blob, found, body)
        made = await self._catalog.preview(blob.id, order.name)
        if made is None:
            raise NotFound(Code.REFERENCE_NOT_FOUND, f"{blob.id} was deleted meanwhile")
        return made

    async def _keep(self, order: _Order, blob: Blob, found: dict[str, Any], body: bytes) -> None:
        """Beside its source, and out of its quota."""
        ref, now, mime = new_id("blob"), self._clock(), f"image/{order.format}"
        key = keys.preview_key(blob.workspace, blob.id, ref, order.format)
        info = await self._store.put(key, sources.once(body), content_type=mime)
        preview = Blob(
            id=ref,
            workspace=blob.workspace,
            key=key,
            type=PinType.IMAGE,
            size=info.size,
            blake3=info.blake3,
            mime_type=mime,
            metadata={"mimeType": mime, **found},
            filename=order.name,
            created_at=now,
        )
        try:
            await self._catalog.add(preview, f"preview:{blob.id}", verified_at=now)
        except BaseException:
            await asyncio.shield(self._discard(ref, key))
            raise

    async def _discard(self, ref: str, key: str) -> None:
        """The row of one who was cancelled may be written all the same."""
        await self._store.delete(key)
        await self._catalog.forget([ref])

    def _refuse_failed(self, order: _Order) -> None:
        until, why = self._failed.get(order, (0.0, ""))
        if self._clock() < until:
            raise _unavailable(why)

    def _remember(self, order: _Order, why: str) -> None:
        self._failed[order] = (self._clock() + _REMEMBERED_S, why)
        if len(self._failed) > _REMEMBERED:
            self._failed.popitem(last=False)


def _rounded(size: int) -> int:
    for known in SIZES:
        if 0 < size <= known:
            return known
    raise Invalid(
        Code.INVALID_REQUEST,
        f"a preview of {size} pixels cannot be had",
        hint=f"ask for 1 to {SIZES[-1]} pixels",
    )


def _unavailable(why: str) -> UnsupportedMedia:
    return UnsupportedMedia(
        Code.PREVIEW_UNAVAILABLE, why, hint="download the file itself, or ask for another preview"
    )
