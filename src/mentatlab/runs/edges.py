"""Values on their way from one node to the next: bytes become references, references are checked.

`process_edge_data` is the producer's side: what an agent gave is stored where it must be, checked
and brought into the form that is recorded. `deliver` is the consumer's side: the input pin's
constraints hold before the agent starts, and references gain the `path` where the agent finds the
bytes.
"""

import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import msgspec

from mentatlab.protocol.errors import Code, Invalid, TooLarge
from mentatlab.protocol.media import MediaReference, is_ref_id, is_reference, s3_address
from mentatlab.protocol.pins import BY_REFERENCE, TTL_S, Pin, PinType, parse_size, violations
from mentatlab.protocol.values import fits, is_object
from mentatlab.storage.keys import extension, generate_key
from mentatlab.storage.port import Blob, Storage
from mentatlab.storage.s3_inputs import S3Inputs, forbidden

MAX_VALUE_BYTES = 32 * 1024
"""A string or JSON value over this is stored and passed by reference."""
MAX_INLINE_BYTES = 512 * 1024
"""Stored values are inlined for an agent up to this, in total."""
MAX_BASE64_BYTES = 256 * 1024
GET_EXPIRES_S = 6 * 3600.0
"""How long an agent may read by the address that it is given."""
BY_VALUE = frozenset({PinType.STRING, PinType.JSON})


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """Where a value comes from and which pin's type it must have.

    `owner` is the catalogue's row that keeps stored bytes (`run:…`, `stream:…`); `below` the folder
    under which the agent may name files; `now_ms` goes into storage keys.
    """

    workspace: str
    flow_id: str
    run_id: str
    node_id: str
    pin: Pin
    owner: str
    now_ms: int
    below: Path | None = None
    max_inline: int = MAX_VALUE_BYTES


class Budget:
    """Bytes of stored values that may still be inlined for one invocation."""

    def __init__(self, left: int = MAX_INLINE_BYTES) -> None:
        self._left = left

    def take(self, size: int) -> bool:
        if size > self._left:
            return False
        self._left -= size
        return True


Sign = Callable[[str, str, float], str]
"""An address that gives the bytes of a blob without another credential, in any of its ranges:
(workspace, ref, seconds for which it is good)."""


class MultimodalEdgeProcessor:
    """`sign` gives agents an address where the store has no file; `s3_inputs` are the places
    outside that a run's inputs may lie in, none without it."""

    def __init__(
        self, storage: Storage, *, sign: Sign | None = None, s3_inputs: S3Inputs | None = None
    ) -> None:
        self._storage = storage
        self._sign = sign
        self._s3_inputs = s3_inputs

    async def process_edge_data(self, edge: Edge, data: Any) -> Any:
        """The value as it is recorded: references for media and for what is large, else unchanged.

        Takes raw bytes, `{"path": …}` of a file below `edge.below`, `{"base64": …}` or a base64
        text up to 256 KiB, and a reference in any form. `Invalid(OUTPUT_TYPE)` when the value does
        not fit the pin.
        """
        if edge.pin.item_type in BY_REFERENCE:
            return await self._process_media(edge, data)
        if _stands_for_value(data):
            return await self._adopt(edge, data)
        if not fits(data, edge.pin.item_type):
            raise _wrong_type(edge.pin, data)
        if edge.pin.enum is not None and data not in edge.pin.enum:
            raise _not_listed(edge.pin, data)
        data = await self._adopt_nested(edge, data)
        return await self._store_large(edge, data)

    async def take_input(self, edge: Edge, data: Any) -> Any:
        """As `process_edge_data`, of a run's input, which may also be an object in a bucket:
        `s3://bucket/key` in any form of a reference. It is copied, and is a blob from there on.

        `Forbidden(S3_PREFIX_FORBIDDEN)` when the workspace may not read there.
        """
        address = s3_address(data) if edge.pin.item_type in BY_REFERENCE else None
        if address is None:
            return await self.process_edge_data(edge, data)
        if self._s3_inputs is None:
            raise forbidden(address)
        filename = address.rpartition("/")[2]
        blob = await self._storage.store(
            self._s3_inputs.open(address, workspace=edge.workspace),
            workspace=edge.workspace,
            owner=edge.owner,
            key=_key(edge, Path(filename).suffix.lstrip(".").lower() or "bin"),
            expect=edge.pin.item_type,
            declared_mime=_mime(edge.pin, {}),
            filename=filename,
            metadata={"source": address, **(_metadata(data) if is_object(data) else {})},
            ttl_s=_ttl_s(edge.pin),
        )
        return blob.reference().to_dict()

    async def validate_reference(self, data: Any, *, workspace: str = "default") -> MediaReference:
        """The reference as the catalogue knows it; a caller's own metadata is kept beside what was
        found.

        `NotFound(REFERENCE_NOT_FOUND)` for an unknown or foreign one, `Gone(REFERENCE_EXPIRED)`.
        """
        blob = await self._storage.get(data, workspace=workspace)
        return _merged(blob, data)

    async def create_reference(
        self, ref: str, type: PinType | str, *, workspace: str = "default"
    ) -> MediaReference:
        """The reference of a stored blob, which must be of this type (any blob is binary)."""
        blob = await self._storage.get(ref, workspace=workspace)
        _check_type(blob, PinType(type))
        return blob.reference()

    async def own(self, value: Any, workspace: str, owner: str) -> None:
        """The references inside a value gain an owner. `NotFound`, `Gone` when one is not there."""

        async def add(reference: dict[str, Any]) -> dict[str, Any]:
            blob = await self._storage.get(reference, workspace=workspace)
            await self._storage.add_owner(blob.id, owner)
            return reference

        await _each_reference(value, add)

    async def check_there(self, value: Any, workspace: str) -> None:
        """`NotFound`, `Gone` when a reference inside the value is not there any more."""

        async def look(reference: dict[str, Any]) -> dict[str, Any]:
            await self._storage.get(reference, workspace=workspace)
            return reference

        await _each_reference(value, look)

    async def deliver(self, edge: Edge, value: Any, budget: Budget) -> Any:
        """The value as the agent gets it; raises what breaks the pin's type or constraints."""
        pin = edge.pin
        if pin.item_type in BY_REFERENCE:
            return await self._deliver_media(edge, value)
        if pin.item_type in BY_VALUE and _stands_for_value(value):
            return await self._inline(edge, value, budget)
        if not fits(value, pin.item_type):
            raise _wrong_type(pin, value, code=Code.TYPE_MISMATCH)
        if pin.enum is not None and value not in pin.enum:
            raise _not_listed(pin, value)
        if pin.metadata.max_size is not None:
            _check_size(edge, len(msgspec.json.encode(value)))
        return await self._locate_nested(value, edge.workspace)

    # -- producer's side

    async def _process_media(self, edge: Edge, data: Any) -> dict[str, Any]:
        match data:
            case bytes() | bytearray():
                return _plain(await self._store(edge, bytes(data)))
            case {"path": str(path), **rest} if "ref" not in data:
                return _plain(await self._store_file(edge, path, rest), data)
            case {"base64": str(text), **rest}:
                return _plain(await self._store(edge, _decode(edge.pin, text), rest), data)
            case str() if not is_ref_id(data) and not data.startswith("mentat://"):
                return _plain(await self._store(edge, _decode(edge.pin, data)))
            case _:
                return await self._adopt(edge, data)

    async def _adopt(self, edge: Edge, data: Any) -> dict[str, Any]:
        """A reference that was there before: it gains the edge's owner."""
        try:
            blob = await self._storage.get(data, workspace=edge.workspace)
        except Invalid as error:
            raise _wrong_type(edge.pin, data) from error
        _check_type(blob, edge.pin.item_type)
        await self._storage.add_owner(blob.id, edge.owner)
        return _merged(blob, data).to_dict()

    async def _adopt_nested(self, edge: Edge, value: Any) -> Any:
        """References inside a JSON value: each is checked, owned, and loses its local `path`."""

        async def adopt(reference: dict[str, Any]) -> dict[str, Any]:
            blob = await self._storage.get(reference, workspace=edge.workspace)
            await self._storage.add_owner(blob.id, edge.owner)
            return _merged(blob, reference).to_dict()

        return await _each_reference(value, adopt)

    async def _store_large(self, edge: Edge, value: Any) -> Any:
        if isinstance(value, bool | int | float) or value is None:
            return value
        body = msgspec.json.encode(value)
        if len(body) <= edge.max_inline:
            return value
        kind = PinType.STRING if isinstance(value, str) else PinType.JSON
        blob = await self._storage.store(
            _once(body),
            workspace=edge.workspace,
            owner=edge.owner,
            key=_key(edge, "json"),
            expect=kind,
            declared_mime="application/json",
            ttl_s=_ttl_s(edge.pin),
        )
        reference = blob.reference().to_dict()
        return {**reference, "type": str(kind)}

    async def _store(
        self, edge: Edge, body: bytes, described: Mapping[str, Any] | None = None
    ) -> Blob:
        mime = _mime(edge.pin, described or {})
        return await self._storage.store(
            _once(body),
            workspace=edge.workspace,
            owner=edge.owner,
            key=_key(edge, extension(mime or "")),
            expect=edge.pin.item_type,
            declared_mime=mime,
            metadata=_metadata(described or {}),
            ttl_s=_ttl_s(edge.pin),
        )

    async def _store_file(self, edge: Edge, path: str, described: Mapping[str, Any]) -> Blob:
        if edge.below is None:
            raise Invalid(
                Code.OUTPUT_FILE_INVALID,
                "only an agent may name a file",
                hint="upload it and give the reference",
            )
        mime = _mime(edge.pin, described)
        suffix = Path(path).suffix.lstrip(".").lower()
        return await self._storage.store_file(
            edge.below / path,
            below=edge.below,
            workspace=edge.workspace,
            owner=edge.owner,
            key=_key(edge, suffix or extension(mime or "")),
            expect=edge.pin.item_type,
            declared_mime=mime,
            metadata=_metadata(described),
            ttl_s=_ttl_s(edge.pin),
        )

    # -- consumer's side

    async def _deliver_media(self, edge: Edge, value: Any) -> dict[str, Any]:
        blob = await self._storage.get(value, workspace=edge.workspace)
        _check_type(blob, edge.pin.item_type)
        found = {"mimeType": blob.mime_type, **blob.metadata}
        problem = next(violations(edge.pin.metadata, size=blob.size, found=found), None)
        if problem is not None:
            raise Invalid(
                problem.code,
                f"{edge.node_id}.{edge.pin.name}: {problem.message}",
                hint="give a medium within the pin's constraints, or use another agent",
            )
        return self._located(blob, value)

    def _located(self, blob: Blob, value: Any) -> dict[str, Any]:
        reference, path, get = _merged(blob, value), self._storage.local_path(blob), ""
        if path is None and self._sign is not None:
            get = self._sign(blob.workspace, blob.id, GET_EXPIRES_S)
        return msgspec.structs.replace(reference, path=str(path or ""), get=get).to_dict()

    async def _inline(self, edge: Edge, value: Any, budget: Budget) -> Any:
        blob = await self._storage.get(value, workspace=edge.workspace)
        _check_size(edge, blob.size)
        if edge.pin.metadata.by_reference:
            return self._located(blob, {**value})
        if not budget.take(blob.size):
            raise TooLarge(
                Code.VALUE_TOO_LARGE,
                f"{edge.node_id}.{edge.pin.name}: {blob.size} bytes do not fit into the"
                f" {MAX_INLINE_BYTES} bytes of values that an agent is given",
                hint="set `byReference: true` in the pin's metadata and read the file at `path`",
            )
        return await self._locate_nested(await self.read_value(blob), edge.workspace)

    async def read_value(self, blob: Blob) -> Any:
        """A stored string or JSON value."""
        reader = await self._storage.open(blob)
        try:
            return msgspec.json.decode(b"".join([chunk async for chunk in reader]))
        finally:
            await reader.aclose()

    async def whole(self, value: Any, workspace: str, budget: Budget) -> Any:
        """A stored string or JSON value read back, any other as it is.

        `TooLarge(VALUE_TOO_LARGE)` when the budget is used up.
        """
        if not _stands_for_value(value):
            return value
        blob = await self._storage.get(value, workspace=workspace)
        if not budget.take(blob.size):
            raise TooLarge(
                Code.VALUE_TOO_LARGE,
                f"{blob.size} bytes are more than a condition or schema is given",
                hint="decide in an agent, and hand on what the condition needs",
            )
        return await self.read_value(blob)

    async def read_list(self, value: Any, workspace: str) -> list[Any]:
        """A list value, stored or inline; `Invalid(FOREACH_NOT_A_LIST)` for anything else."""
        if _stands_for_value(value):
            value = await self.read_value(await self._storage.get(value, workspace=workspace))
        if not is_array(value):
            raise Invalid(
                Code.FOREACH_NOT_A_LIST, f"{_shown(value)} is not a list", hint="give a JSON array"
            )
        return value

    async def _locate_nested(self, value: Any, workspace: str) -> Any:
        async def locate(reference: dict[str, Any]) -> dict[str, Any]:
            return self._located(await self._storage.get(reference, workspace=workspace), reference)

        return await _each_reference(value, locate)


def is_array(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _stands_for_value(value: Any) -> bool:
    """A reference to a stored string or JSON value, as against one to a medium inside JSON."""
    return is_reference(value) and value["type"] in BY_VALUE


Change = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


async def _each_reference(value: Any, change: Change) -> Any:
    """The JSON value with every media reference inside it changed."""
    if b"mentat://" not in msgspec.json.encode(value):  # spares the walk through plain values
        return value
    if is_object(value):
        if is_reference(value):
            return await change(value)
        return {k: await _each_reference(v, change) for k, v in value.items()}
    if is_array(value):
        return [await _each_reference(v, change) for v in value]
    return value


def _plain(blob: Blob, described: Any = None) -> dict[str, Any]:
    return _merged(blob, described).to_dict()


def _merged(blob: Blob, data: Any) -> MediaReference:
    """What probing found wins over what was said."""
    reference = blob.reference()
    said = _metadata(data) if is_object(data) else {}
    metadata = {**said, **reference.ref.metadata}
    ref = msgspec.structs.replace(reference.ref, metadata=metadata)
    return msgspec.structs.replace(reference, ref=ref)


def _metadata(described: Mapping[str, Any]) -> dict[str, Any]:
    inner = described.get("ref")
    found = (inner if is_object(inner) else described).get("metadata")
    return {k: v for k, v in found.items() if k != "mimeType"} if is_object(found) else {}


def _mime(pin: Pin, described: Mapping[str, Any]) -> str | None:
    match described:
        case {"mimeType": str(mime)} | {"metadata": {"mimeType": str(mime)}}:
            return mime
        case _:
            mime = pin.metadata.mime_type
            return mime if mime and "," not in mime and "*" not in mime else None


def _ttl_s(pin: Pin) -> float | None:
    return TTL_S[pin.metadata.ttl or "execution"]


def _key(edge: Edge, ext: str) -> str:
    return generate_key(
        edge.workspace,
        edge.flow_id,
        edge.run_id,
        edge.node_id,
        edge.pin.name,
        ext,
        timestamp_ms=edge.now_ms,
    )


def _decode(pin: Pin, text: str) -> bytes:
    if len(text) > MAX_BASE64_BYTES:
        raise TooLarge(
            Code.VALUE_TOO_LARGE,
            f"{pin.name}: {len(text)} characters of base64 are over {MAX_BASE64_BYTES}",
            hint="write a file under out_dir and give its path",
        )
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise _wrong_type(pin, text) from error


def _check_type(blob: Blob, wanted: PinType) -> None:
    fine = wanted in (blob.type, PinType.BINARY) or wanted not in BY_REFERENCE
    if not fine:
        raise Invalid(
            Code.MEDIA_TYPE_MISMATCH,
            f"{blob.id} is {blob.type} ({blob.mime_type}), the pin takes {wanted}",
            hint=f"give a reference to {wanted}",
        )


def _check_size(edge: Edge, size: int) -> None:
    """Of a string or JSON value, as JSON."""
    limit = edge.pin.metadata.max_size
    if limit is not None and size > parse_size(limit):
        raise TooLarge(
            Code.MEDIA_TOO_LARGE,
            f"{edge.node_id}.{edge.pin.name}: {size} bytes are over maxSize {limit}",
            hint="give a smaller value, or use another agent",
        )


def _wrong_type(pin: Pin, value: Any, *, code: Code = Code.OUTPUT_TYPE) -> Invalid:
    return Invalid(
        code,
        f"{pin.name}: {_shown(value)} is not of type {pin.item_type}",
        hint='media are given as a file under out_dir ({"path": …}) or as a reference'
        if pin.item_type in BY_REFERENCE
        else f"the pin {pin.name} takes {pin.item_type}",
    )


def _not_listed(pin: Pin, value: Any) -> Invalid:
    allowed = ", ".join(map(str, pin.enum or ()))
    return Invalid(
        Code.TYPE_MISMATCH, f"{pin.name}: {_shown(value)} is none of {allowed}", hint=allowed
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
