"""The open lanes of this process: what a publish needs to know without asking the log."""

from collections import Counter

from mentatlab.protocol.records import TERMINAL
from mentatlab.streams.port import Entry, Lane

MOST = 65_536


class StreamRegistry:
    """Lanes by stream id, from the first time they are met until their terminal record.

    Of more than `MOST` the oldest are forgotten: another server may have ended them unheard.
    """

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    def register(self, lane: Lane) -> None:
        if lane.state != "open":
            return
        if len(self._lanes) >= MOST:
            del self._lanes[next(iter(self._lanes))]
        self._lanes[lane.stream_id] = lane

    def get(self, stream_id: str) -> Lane | None:
        """As it was when it was registered: ids and durability hold, counters do not."""
        return self._lanes.get(stream_id)

    def appended(self, entry: Entry) -> None:
        if entry.type in TERMINAL:
            self._lanes.pop(entry.stream_id, None)

    def forget_run(self, run_id: str) -> None:
        for lane in [lane for lane in self._lanes.values() if lane.run_id == run_id]:
            del self._lanes[lane.stream_id]

    def statistics(self) -> dict[str, int]:
        """How many lanes are open, by durability."""
        return dict(Counter(lane.durability for lane in self._lanes.values()))
