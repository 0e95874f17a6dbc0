"""Names of a run's lanes, and which of their records stand. Pure."""

import hashlib
from collections.abc import Iterable

from mentatlab.protocol.ids import ulid

RUN_NODE = "_run"
RUN_PIN = "events"
LOG_PIN = "_log"


def stream_id(run_id: str, node_id: str, pin: str) -> str:
    """The same lane has the same name after a restart, so it need not be stored."""
    digest = hashlib.sha256(f"{run_id}\0{node_id}\0{pin}".encode()).digest()
    return f"st_{ulid(int.from_bytes(digest[10:16], 'big'), digest[:10])}"


class Standing:
    """The sequences of a lane whose records no later attempt has voided.

    `cut` comes with the decision to begin again, `reopen` when the log has the new `stream_start`:
    what is read in between belongs to the old attempt.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ((1, 0),)) -> None:
        """`ranges` as the log knows them, inclusive; the last one is still growing."""
        *ended, (start, _) = ranges
        self._ranges: list[tuple[int, int | None]] = [*ended, (start, None)]

    def cut(self, keep: int) -> None:
        self._ranges = [
            (first, keep if last is None else min(last, keep))
            for first, last in self._ranges
            if first <= keep
        ]

    def reopen(self, start: int) -> None:
        self._ranges.append((start + 1, None))

    def holds(self, sequence: int) -> bool:
        return any(
            first <= sequence and (last is None or sequence <= last) for first, last in self._ranges
        )
