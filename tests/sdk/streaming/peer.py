"""The server's side of `msp.v1+json` as a pure model: one stream, its producers, connections that
can be cut anywhere. What the conversation is played against without a network."""

from collections import deque
from typing import Any

import msgspec

from mentatlab.protocol import frames
from mentatlab.protocol.frames import Extension, Frame
from mentatlab.protocol.records import parse_cursor
from mentatlab.sdk.streaming.conversation import Conversation, Interrupted, Outgoing

STREAM = "st_1"
NAMES = {"stream_id": STREAM, "run_id": "rs_1", "node_id": "me", "pin_name": "out"}
STARTED = "2026-01-01T00:00:00.000Z"
LANE, PUBLISHING_LANE = 3, 5


class Log:
    """`records` are JSON objects; a binary one has its `Frame` under "frame"."""

    def __init__(self, *, epoch: int = 1) -> None:
        self.epoch = epoch
        self.records: list[dict[str, Any]] = []
        self.known: dict[str, int] = {}
        self.append({"type": "stream_start", "payload": {"metadata": {"resume_from": 0}}})

    def append(self, record: dict[str, Any]) -> None:
        sequence = len(self.records) + 1
        self.records.append({**NAMES, "sequence": sequence, "timestamp": STARTED, **record})

    @property
    def ended(self) -> bool:
        return self.records[-1]["type"] in ("stream_end", "stream_error")

    @property
    def data(self) -> list[Any]:
        return [
            r["frame"].body if "frame" in r else r["payload"]["data"]
            for r in self.records
            if r["type"] == "stream_data"
        ]

    def publish(self, producer: str, seq: int, record: dict[str, Any]) -> None:
        last = self.known.get(producer, 0)
        assert seq <= last + 1, "the client left a hole"
        if seq == last + 1:
            assert not self.ended
            if record["type"] == "stream_end":
                record["payload"]["chunks"] = len(self.data)
            self.append(record)
            self.known[producer] = seq


class Connection:
    """`up` and `down` are on their way; `cut` loses what is."""

    def __init__(self, log: Log, conversation: Conversation, *, window: int = 2000) -> None:
        self._log, self._conversation, self._window = log, conversation, window
        self.up: deque[Outgoing] = deque()
        self.down: deque[str | bytes] = deque()
        self._position: int | None = None
        self._granted = self._delivered = 0
        self._producer = ""
        self._published = 0  # bytes
        self._told_end = False
        conversation.opened()

    def send(self) -> bool:
        """One message of the client's sets out."""
        message = self._conversation.next_message()
        if message is not None:
            self.up.append(bytearray(message) if isinstance(message, bytearray) else message)
        return message is not None

    def serve(self) -> bool:
        """The server deals with one message."""
        if not self.up:
            return False
        message = self.up.popleft()
        if isinstance(message, bytearray):
            self._binary(frames.decode(bytes(message)))
        else:
            self._control(msgspec.json.decode(message), len(message))
        return True

    def deliver(self) -> bool:
        """The server sends one record, if it may."""
        records = self._log.records
        if self._position is None or self._delivered >= self._granted:
            return False
        if self._position == len(records):
            if self._log.ended and not self._told_end:
                self._told_end = True
                self._say("mark", cursor=f"{self._log.epoch}:{self._position}", state="ended")
                return True
            return False
        record = records[self._position]
        self._position += 1
        frame = _frame_of(record) if "frame" in record else msgspec.json.encode(record).decode()
        self._delivered += len(frame)
        self.down.append(frame)
        return True

    def receive(self) -> bool:
        """The client gets one message; `Interrupted` is its own affair."""
        if not self.down:
            return False
        self._conversation.received(self.down.popleft())
        return True

    def cut(self) -> None:
        self._conversation.lost()

    def _control(self, message: dict[str, Any], size: int) -> None:
        match message["type"]:
            case "subscribe":
                self._subscribe(message)
            case "unsubscribe":
                self._position = None
            case "credit":
                self._granted = max(self._granted, message["max_bytes"])
            case "publish":
                self._producer = message["producer"]["id"]
                known = self._log.known.get(self._producer, 0)
                self._say(
                    "publishing",
                    lane=PUBLISHING_LANE,
                    producer_seq=known,
                    epoch=self._log.epoch,
                    max_bytes=self._window,
                )
            case "stream_data" | "stream_end" | "stream_error":
                seq = message.pop("producer_seq")
                self._append(seq, message, size)
            case _:
                raise AssertionError(message)

    def _binary(self, frame: Frame) -> None:
        assert frame.lane == PUBLISHING_LANE
        record = {"type": "stream_data", "payload": {}, "frame": frame}
        self._append(frame.sequence, record, len(frame.body))

    def _append(self, seq: int, record: dict[str, Any], size: int) -> None:
        self._log.publish(self._producer, seq, record)
        self._published += size
        self._say("published", producer_seq=seq, sequence=len(self._log.records))
        self._say("credit", max_bytes=self._published + self._window)

    def _subscribe(self, message: dict[str, Any]) -> None:
        said: str = message["from"]
        self._position = 0 if said == "start" else parse_cursor(said).sequence
        gap = ":" in said and parse_cursor(said).epoch != self._log.epoch
        if gap:
            self._position = 0
        self._granted, self._delivered = message["max_bytes"], 0
        cursor = f"{self._log.epoch}:{self._position}"
        self._say("subscribed", lane=LANE, start=cursor, started=STARTED, **_names())
        if gap:
            self._say("gap", reason="epoch", next=cursor, **{"from": said, "to": cursor})

    def _say(self, type_: str, **fields: Any) -> None:
        self.down.append(msgspec.json.encode({"type": type_, "id": STREAM, **fields}).decode())


def _names() -> dict[str, str]:
    return {name: value for name, value in NAMES.items() if name != "stream_id"}


def _frame_of(record: dict[str, Any]) -> bytes:
    frame: Frame = record["frame"]
    return frames.encode(
        msgspec.structs.replace(frame, lane=LANE, sequence=record["sequence"], delta_ms=5)
    )


__all__ = ["Connection", "Extension", "Interrupted", "Log"]
