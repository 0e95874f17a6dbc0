"""What the uploads of several stores have in common."""

from collections.abc import Sequence

from mentatlab.protocol.errors import Code, Conflict, NotFound
from mentatlab.storage.port import SignedPart


class Unsigned:
    """`Caps.presigns` is false; who asks all the same is told."""

    async def sign_parts(self, numbers: Sequence[int], *, expires_s: float) -> list[SignedPart]:
        del numbers, expires_s
        raise _unsigned()

    async def missing_parts(self) -> list[int]:
        raise _unsigned()


def _unsigned() -> Conflict:
    return Conflict(
        Code.CONFLICT, "this store takes no parts from clients", hint="ask Caps.presigns first"
    )


def refuse_incomplete(size: int, announced: int | None) -> None:
    if announced is not None and announced != size:
        raise Conflict(
            Code.UPLOAD_INCOMPLETE,
            f"{size} of {announced} bytes have arrived",
            hint="send the rest, then complete it again",
        )


def already_complete() -> Conflict:
    return Conflict(
        Code.CONFLICT, "the upload is complete; nothing can be added", hint="begin a new one"
    )


def unknown_upload(upload_id: str) -> NotFound:
    return NotFound(
        Code.UPLOAD_NOT_FOUND, f"there is no open upload {upload_id[:80]!r}", hint="begin a new one"
    )
