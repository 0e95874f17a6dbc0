"""`WS /ws/streams/{id}` for plain clients: `wscat` is enough."""

import asyncio

from starlette.websockets import WebSocket

from mentatlab.gateway.stream_access import admit, first_of
from mentatlab.gateway.stream_wire import DONE, Close, Timing, Wire, close_for, gap_message
from mentatlab.protocol.errors import MentatError
from mentatlab.streams import Appended, StreamingConnectionManager, Subscription
from mentatlab.streams.publishing import Batch, Inbox, parse_publication


class PlainSocket:
    """Records out from `?from=` (default latest); each message in is a record to publish."""

    def __init__(
        self, hub: StreamingConnectionManager, websocket: WebSocket, id_: str, timing: Timing
    ) -> None:
        self.hub, self.websocket, self._id = hub, websocket, id_
        self.wire = Wire(websocket, timing.stall_s)
        self._failure: asyncio.Future[Close] = asyncio.get_running_loop().create_future()
        self._inbox = Inbox(hub, published=_silent, failed=self._refused)

    async def run(self) -> Close:
        await admit(self.hub, self.websocket, self._id, "sub")
        from_ = self.websocket.query_params.get("from") or "latest"
        async with self.hub.subscribe(self._id, from_=from_) as subscription:
            return await first_of(
                self._receive(), self._send(subscription), self._inbox.run(), self._refusal()
            )

    async def _send(self, subscription: Subscription) -> Close:
        if subscription.gap is not None:
            await self.wire.deliver(gap_message(self._id, subscription))
        if subscription.preface is not None:
            await self.wire.deliver(subscription.preface.json)
        while not subscription.over:
            for item in await subscription.batch():
                await self.wire.deliver(item.json)
        return DONE

    async def _receive(self) -> Close:
        """What a client said before it left, or erred, is published; leaving cancels nothing."""
        try:
            while (message := await self.wire.receive()) is not None:
                publication = parse_publication(message[0], stream_id=self._id, size=message[1])
                await admit(self.hub, self.websocket, self._id, "pub")
                await self._inbox.put(publication)
        except MentatError:
            await self._inbox.flushed()
            raise
        await self._inbox.flushed()
        return Close(1000)

    async def _refused(self, _: Batch, error: MentatError) -> None:
        if not self._failure.done():
            self._failure.set_result(close_for(error))

    async def _refusal(self) -> Close:
        return await self._failure


async def _silent(_batch: Batch, _appended: Appended) -> None:
    """A plain client sees its records come back."""
