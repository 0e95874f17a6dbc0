"""The elements of streams and lists, and the records that they travel in."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, MentatError
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.pins import BY_REFERENCE, Pin
from mentatlab.protocol.records import Draft, RecordType, StreamChunk
from mentatlab.runs.edges import BY_VALUE
from mentatlab.runs.lanes import Standing
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.subscription import Options


class Element(msgspec.Struct, frozen=True):
    """One element of a stream or list: a value (or reference), its sequence or index, its media
    time."""

    seq: int
    value: Any
    is_ref: bool = False
    pts: float | None = None


class StreamBrokenError(MentatError):
    """A source stream ended otherwise than complete; the engine decides what follows."""

    def __init__(self, name: str) -> None:
        super().__init__(
            Code.UPSTREAM_FAILED,
            f"the stream {name} broke off",
            hint="see the error of its producer",
        )


async def elements(
    hub: StreamingConnectionManager,
    name: str,
    standing: Mapping[str, Standing],
    *,
    after: int = 0,
    reader: str = "",
) -> AsyncIterator[Element]:
    """The data of a lane that stand, in order, as they come. `standing`: of the run's own lanes, by
    name; of another's what stands now.

    `reader` is the node that holds the lane's publisher back to its own pace; "" holds nobody.
    """
    stands = standing.get(name) or await _foreign(hub, name)
    options = Options(policy="block", reader=reader) if reader else Options()
    async with hub.subscribe(name, from_=after + 1, options=options) as records:
        async for record in records:
            match record.type:
                case RecordType.DATA:
                    if stands.holds(record.sequence):
                        yield element_of(record)
                case RecordType.END if record.payload.get("reason") == "complete":
                    return
                case RecordType.END | RecordType.ERROR:
                    raise StreamBrokenError(name)
                case RecordType.START:
                    pass


async def _foreign(hub: StreamingConnectionManager, name: str) -> Standing:
    ranges = (await hub.lane(name)).standing
    return Standing(ranges) if ranges else Standing()


def element_of(record: StreamChunk) -> Element:
    pts = None if record.pts_us is None else record.pts_us / 1e6
    if "ref" in record.payload:
        return Element(record.sequence, record.payload["ref"], True, pts)
    return Element(record.sequence, record.payload.get("data"), False, pts)


_JSON = "application/json"


def chunk_draft(
    pin: Pin,
    value: Any,
    *,
    attempt: int,
    item: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    pts: float | None = None,
    duration: float | None = None,
) -> Draft:
    """`ref` for media and for what was stored because of its size, else `data`."""
    by_ref = is_reference(value) and (pin.item_type in BY_REFERENCE or value["type"] in BY_VALUE)
    mime = value["ref"].get("metadata", {}).get("mimeType") if by_ref else None
    described = {**(metadata or {}), "mime_type": mime or pin.metadata.mime_type or _JSON}
    return Draft(
        payload={"ref" if by_ref else "data": value, "metadata": described},
        pts_us=None if pts is None else round(pts * 1e6),
        dur_us=None if duration is None else round(duration * 1e6),
        attempt=attempt,
        item=item,
    )
