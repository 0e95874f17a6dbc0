"""Who may start: places, cores and memory, handed out in turn.

What runs at once does not ask for more than the machine has. Two rules keep that from standing in
its own way. Nodes of one run that are joined by streams wait for each other, so once one of them
runs the others are let in beyond the limits (of a `forEach` node one item). And what waits for a
busy worker of its own agent, or for `max_concurrent`, holds up nobody else.
"""

import asyncio
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

from mentatlab.protocol.pins import PinType
from mentatlab.runners.fair import FairQueue
from mentatlab.runners.ledger import Ledger, Need
from mentatlab.runners.pool import Blocked, WarmPool
from mentatlab.runners.port import Invocation
from mentatlab.runners.worker import Worker


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """`worker` is set with `granted`, where it is to be warm."""

    invocation: Invocation
    need: Need
    warm: bool
    notice: str = ""  # for the log, before the agent's own
    worker: Worker | None = None
    granted: bool = False
    begun: bool = False  # its attempt gives the place back
    turn: "asyncio.Future[None] | None" = None

    @property
    def node(self) -> tuple[str, str]:
        context = self.invocation.context
        return context.run_id, context.node_id

    @property
    def agent(self) -> tuple[str, str]:
        return self.invocation.workspace, self.invocation.program.id

    @property
    def joined_by_streams(self) -> bool:
        invocation = self.invocation
        return (
            bool(invocation.stream_inputs)
            or invocation.context.item is not None
            or any(pin.type is PinType.STREAM for pin in invocation.program.outputs)
        )


class Admission:
    def __init__(self, pool: WarmPool, ledger: Ledger) -> None:
        self._pool = pool
        self._ledger = ledger
        self._queue: FairQueue[Request] = FairQueue()
        self._agents: Counter[tuple[str, str]] = Counter()
        self._nodes: Counter[tuple[str, str]] = Counter()
        self._runs: Counter[str] = Counter()
        pool.changed = self.stir

    def enter(self, request: Request) -> bool:
        """Whether it may start at once; else `turn` comes."""
        if (not self._queue or self._urgent(request)) and self._place(request) is None:
            return True
        request.turn = asyncio.get_running_loop().create_future()
        self._queue.push(request.invocation.workspace, request.node[0], request)
        self.stir()
        return request.granted

    def leave(self, request: Request) -> None:
        """It has ended, or does not want to wait any more."""
        if not request.granted:
            if request.turn:
                request.turn = None
                self._queue.remove(request.invocation.workspace, request.node[0], request)
            return
        request.granted, request.turn = False, None
        _one_less(self._agents, request.agent)
        _one_less(self._nodes, request.node)
        _one_less(self._runs, request.node[0])
        if request.worker:
            self._pool.release(request.worker)
        else:
            self._ledger.drop(request)
            self.stir()

    def stir(self) -> None:
        """Serve whom there is room for."""
        if not self._queue:
            return
        for request in [r for r in self._queue if r.joined_by_streams and self._urgent(r)]:
            if self._place(request) is None:
                self._served(request)
        while self._serve_heads():
            pass

    def _serve_heads(self) -> bool:
        """Whether anybody was let in, so that the next of its run may be, too."""
        any_served = False
        for request in self._queue.heads():
            blocked = self._place(request)
            if blocked == "machine":
                return False
            if blocked is None:
                self._served(request)
                any_served = True
        return any_served

    def _served(self, request: Request) -> None:
        self._queue.served(request.invocation.workspace, request.node[0], request)
        if request.turn and not request.turn.done():
            request.turn.set_result(None)

    def _urgent(self, request: Request) -> bool:
        run = request.node[0]
        return request.joined_by_streams and self._runs[run] > 0 and self._nodes[request.node] == 0

    def _place(self, request: Request) -> Blocked | None:
        """None when it was granted."""
        most = request.invocation.resources.max_concurrent
        if 0 < most <= self._agents[request.agent]:
            return "own"
        blocked = self._seat(request, urgent=self._urgent(request))
        if blocked is None:
            request.granted = True
            self._agents[request.agent] += 1
            self._nodes[request.node] += 1
            self._runs[request.node[0]] += 1
        return blocked

    def _seat(self, request: Request, *, urgent: bool) -> Blocked | None:
        if request.warm:
            worker = self._pool.place(request.invocation, request.need, urgent=urgent)
            if not isinstance(worker, Worker):
                return worker
            request.worker = worker
            return None
        if not urgent and not self._pool.make_room(request.need):
            return "machine"
        self._ledger.hold(request, request.need)
        return None


_T = TypeVar("_T", bound=Hashable)


def _one_less(counter: Counter[_T], key: _T) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
