"""What both kinds of attempt do with an agent's lines: parse, note the result, budget the log, pass
on.
"""

from collections import deque
from collections.abc import Iterator

from mentatlab.protocol import events
from mentatlab.runners.mailbox import LogBudget

_TAIL_LINES = 20
_LONGEST_LOG_LINE = 64 * 1024


class Stderr:
    """stderr bytes → log lines; a line over 64 KiB comes in pieces. Keeps the last lines for a
    message.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def feed(self, data: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LOG_LINE:
            lines.append(self._rest)
            self._rest = bytearray()
        for line in lines:
            yield self._keep(line)

    def end(self) -> Iterator[str]:
        if self._rest:
            yield self._keep(self._rest)

    def _keep(self, line: bytearray) -> str:
        text = line.decode("utf-8", "replace")
        if text.strip():
            self._tail.append(text.strip())
        return text

    @property
    def last_words(self) -> str:
        return self._tail[-1] if self._tail else ""


_REMARKS = events.Log | events.Progress | events.Metric | events.Output
"""Nobody waits for these: they are kept in memory, or (outputs) have been noted already."""


def admit(event: events.AgentEvent, size: int, budget: LogBudget) -> events.AgentEvent | None:
    """The event; of remarks, the notice when their budget is reached and None afterwards.

    `FloodError` when it is over all measure. Everything else waits for its reader.
    """
    if not isinstance(event, _REMARKS):
        return event
    match budget.take(size):
        case "keep":
            return event
        case "notice":
            return budget.notice()
        case "drop":
            return None
        case "flood":
            raise FloodError


class FloodError(Exception):
    pass
