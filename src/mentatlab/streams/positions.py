"""Where reading begins: what a reader may write as `from`. Pure."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.records import Cursor, parse_cursor


class Gap(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """What a reader cannot have: the records after `from` up to `to` (cursors).

    `reason`: `epoch` (the log begins again), `retention`, `dropped` (by the reader's own policy).
    It goes on after `next`.
    """

    from_: str
    to: str
    reason: str
    next: str


class Start(NamedTuple):
    """Where reading begins (a position already had), and what the reader must be told first.

    `fresh`: the reader has nothing yet, so it gets the lane's first `stream_start` in any case.
    """

    position: int
    fresh: bool
    gap: Gap | None = None


class FromTime(NamedTuple):
    """The first record at or after that time; Unix ms."""

    time_ms: int


class FromKey(NamedTuple):
    """The last record with the key flag."""


_SEQUENCE = re.compile(r"[0-9]{1,18}")
_LAST = re.compile(r"-[0-9]{1,18}")


def parse_from(from_: str | int, head: Cursor) -> Start | FromTime | FromKey:
    """`start`, `latest`, a sequence (inclusive), a cursor (exclusive), `-N` (the last N records),
    `time:<RFC 3339 or Unix seconds>`, `key`. `Invalid(STREAM_CURSOR_INVALID)` for all else.
    """
    text = str(from_)
    if text == "start":
        return Start(0, fresh=True)
    if text == "latest":
        return Start(head.sequence, fresh=True)
    if text == "key":
        return FromKey()
    if text.startswith("time:"):
        return FromTime(_time(text.removeprefix("time:")))
    if _SEQUENCE.fullmatch(text):
        return Start(max(0, int(text) - 1), fresh=True)
    if _LAST.fullmatch(text):
        return Start(max(0, head.sequence + int(text)), fresh=True)
    return _after(parse_cursor(text), head)


def _after(cursor: Cursor, head: Cursor) -> Start:
    if cursor.epoch != head.epoch:
        begin = str(Cursor(head.epoch, 0))
        return Start(0, fresh=True, gap=Gap(str(cursor), begin, "epoch", begin))
    if cursor.sequence > head.sequence:
        raise Invalid(
            Code.STREAM_CURSOR_INVALID,
            f"the cursor {cursor} lies after the last record",
            hint="use the id of the last event you got, unchanged",
        )
    return Start(cursor.sequence, fresh=cursor.sequence == 0)


def _time(text: str) -> int:
    try:
        when = float(text) if text.replace(".", "", 1).isdigit() else _rfc3339(text)
        return int(when * 1000)
    except (ValueError, OverflowError) as error:
        raise Invalid(
            Code.STREAM_CURSOR_INVALID,
            f"{text[:60]!r} is not a time",
            hint="write time:2026-11-23T06:42:01Z, or time:<Unix seconds>",
        ) from error


def _rfc3339(text: str) -> float:
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def parse_rate(rate: str | float | None) -> float | None:
    """`max` (None), or a factor of recorded time; `Invalid(STREAM_CURSOR_INVALID)`."""
    if rate is None or rate == "max":
        return None
    try:
        factor = float(rate)
    except ValueError:
        factor = 0.0
    if 0 < factor <= 1000:
        return factor
    raise Invalid(
        Code.STREAM_CURSOR_INVALID,
        f"{str(rate)[:40]!r} is not a rate",
        hint="write max, or a factor of recorded time: over 0, at most 1000",
    )
