"""`WS /ws/streams/{id}` for plain clients: `wscat` is enough.

Records out from `?from=` (default latest) at `?rate=` (default max); each message in is a record to
publish. Whoever may publish but not read only publishes.
"""

from mentatlab.gateway.stream_access import Authority
from mentatlab.gateway.stream_socket import SocketConversation, Surroundings
from mentatlab.gateway.stream_wire import DONE, MAX_MESSAGE_BYTES, check_size, gap_message
from mentatlab.protocol.errors import Forbidden, MentatError
from mentatlab.protocol.records import MAX_RECORD_BYTES, Draft, parse_message
from mentatlab.streams.buffer import Items
from mentatlab.streams.positions import parse_rate
from mentatlab.streams.publishing import Batch, Publication, publication_of
from mentatlab.streams.pump import Pump
from mentatlab.streams.subscription import Options, Subscription


class PlainConversation(SocketConversation):
    __slots__ = ("_from", "_pump", "_rate")
    kind = "plain"

    def __init__(
        self,
        around: Surroundings,
        id_: str,
        authority: Authority,
        from_: str | None = None,
        rate: str | None = None,
    ) -> None:
        super().__init__(around, id_, authority)
        self._from, self._rate = from_ or "latest", rate
        self._pump: Pump | None = None

    def text(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            check_size(len(data), MAX_MESSAGE_BYTES, "a message")
            message = parse_message(data)
            self._put(publication_of(message, stream_id=self._id, size=len(data)))
        except MentatError as error:
            self._fail_in_turn(error)

    def binary(self, data: bytes) -> None:
        """One binary record."""
        if self._deaf:
            return
        try:
            check_size(len(data), MAX_RECORD_BYTES, "a binary record")
            self._put(Publication(self._id, Draft(body=data), None, len(data)))
        except MentatError as error:
            self._fail_in_turn(error)

    def refused(self, batch: Batch, error: MentatError) -> None:
        """What it has said since is not published either."""
        self._inbox.abandon()
        self._fail(error)

    def _begin(self) -> None:
        self._later(self._attach)

    async def _attach(self) -> None:
        try:
            if await self._reads():
                options = Options(rate=parse_rate(self._rate), guard=self._authority.guard)
                hub = self._around.hub
                self._follow(await hub.attach(self._id, from_=self._from, options=options))
        except MentatError as error:
            self._fail(error)

    async def _reads(self) -> bool:
        """False: it may only publish."""
        try:
            await self._authority.check("sub", self._id)
        except Forbidden as error:
            try:
                await self._authority.check("pub", self._id)
            except MentatError:
                raise error from None
            return False
        return True

    def _follow(self, subscription: Subscription) -> None:
        if self._closed:
            subscription.close()
            return
        self._pump = Pump(
            subscription,
            ready=self._ready,
            deliver=self._deliver,
            ended=self._ended,
            failed=self._fail,
            spawn=self._link.spawn,
        )
        self._tell_gap(subscription)
        if subscription.preface is not None:
            self._link.send_items([subscription.preface], joined=False)
        self._pump.run()

    def _ready(self) -> bool:
        return self._link.writable

    def _deliver(self, items: Items) -> None:
        assert self._pump is not None
        self._tell_gap(self._pump.subscription)
        self._link.send_items(items, joined=False)

    def _tell_gap(self, subscription: Subscription) -> None:
        if subscription.gap is not None:
            self._link.send_text(gap_message(self._id, subscription.gap))
            subscription.gap = None

    def _ended(self) -> None:
        self._close(DONE)

    def _go_on(self) -> None:
        if self._pump is not None:
            self._pump.run()

    def _throttled(self, wait_s: float) -> None:
        """A plain client only notices that it is slow."""

    def _release(self) -> None:
        if self._pump is not None:
            self._pump.close()
