"""What an upload does next: which bytes are missing, which parts to send, when to go another way.
Pure; `uploading` moves the bytes.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from mentatlab.protocol.errors import Code, MentatError

SMALL = 4 << 20
"""Bytes that travel in one request, without negotiation."""
CHUNK = 64 << 20
"""Bytes of one tus request: proxies and CDNs let no more than 100 MB through."""
SIGN_AT_ONCE = 16
"""Parts whose addresses are asked for together: signed just in time, they seldom expire."""

_TRIES_AT_FIRST, _TRIES = 2, 4

Progress = Callable[[int, int | None], None]
"""Bytes sent so far, and in all (None when unknown)."""

_PASSING = frozenset(
    {
        Code.UPLOAD_LOCKED,
        Code.UPLOAD_SUPERSEDED,
        Code.UPLOAD_OFFSET_MISMATCH,
        Code.UPLOAD_INCOMPLETE,
    }
)


class Part(msgspec.Struct, frozen=True):
    """Bytes `offset` to `offset + size`, for a PUT to `url`."""

    number: int
    offset: int
    size: int
    url: str


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of an upload, in any of its answers.

    `url`, `offset` (bytes that are safe): of tus. `part_size`, `parts`, `missing_parts` (None: no
    part has been sent yet): of direct.
    """

    upload_id: str
    ref: str
    mode: Literal["single", "tus", "direct"]
    state: str = "open"
    size: int | None = None
    offset: int = 0
    url: str | None = None
    part_size: int | None = None
    parts: list[Part] | None = None
    missing_parts: list[int] | None = None


def goes_on(error: MentatError) -> bool:
    """Whether asking for the state and going on from there may help."""
    return error.retryable or error.code in _PASSING


class Parts:
    """The parts of a direct upload, each on its way once at a time."""

    def __init__(self, upload: Upload, size: int) -> None:
        self._size, self._part_size = size, upload.part_size or size
        count = -(-size // self._part_size)
        missing = upload.missing_parts
        self._waiting = deque(range(1, count + 1) if missing is None else sorted(missing))
        self._missing = set(self._waiting)
        self._signed: dict[int, Part] = {}
        self._tries: Counter[int] = Counter()
        self._patience = _TRIES_AT_FIRST
        self.sign(upload.parts or ())

    def take(self) -> int | None:
        """The next one to send; None when none waits."""
        return self._waiting.popleft() if self._waiting else None

    def signed(self, number: int) -> Part | None:
        return self._signed.get(number)

    def to_sign(self, number: int) -> list[int]:
        """That one, and those that come next."""
        unsigned = [n for n in self._waiting if n not in self._signed]
        return [number, *unsigned[: SIGN_AT_ONCE - 1]]

    def sign(self, parts: Iterable[Part]) -> None:
        self._signed.update((part.number, part) for part in parts)

    def arrived(self, number: int) -> None:
        self._missing.discard(number)
        self._tries.clear()
        self._patience = _TRIES

    def failed(self, number: int, *, refused: bool) -> bool:
        """It waits again, with a new address; `refused` (the signature is over): so do all.

        Whether to go on like that: a part that fails again and again, while no other arrives, is
        larger than what the line carries, or nobody is there.
        """
        if refused:
            self._signed.clear()
        self._signed.pop(number, None)
        self._waiting.appendleft(number)
        self._tries[number] += 1
        return self._tries[number] < self._patience

    @property
    def bytes_arrived(self) -> int:
        return self._size - sum(self._size_of(number) for number in self._missing)

    def _size_of(self, number: int) -> int:
        return min(self._part_size, self._size - (number - 1) * self._part_size)


class Tally:
    """Tells how far an upload is: never less than before, and all only when the server has all.

    Bytes that are sent again after a cut are not told again.
    """

    def __init__(self, size: int | None, tell: Progress | None) -> None:
        self._size, self._tell = size, tell
        self._told = 0

    def at(self, sent: int) -> None:
        """So many bytes have been sent; the last ones are not safe yet."""
        if sent > self._told and sent != self._size:
            self._say(sent)

    def done(self, size: int) -> None:
        self._size = size
        self._say(size)

    def _say(self, sent: int) -> None:
        self._told = sent
        if self._tell is not None:
            self._tell(sent, self._size)


def modes_for(size: int | None, *, parts: bool = True) -> Sequence[str]:
    """What is offered to the server: bytes of unknown length travel by tus."""
    return ["direct", "tus", "single"] if size is not None and parts else ["tus"]
