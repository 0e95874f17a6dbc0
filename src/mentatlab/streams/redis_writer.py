"""What is written to runs in Redis: decided here, carried out there if nothing has changed.

Jobs that wait together for a run are one call, calls of different runs go together. A run has one
call under way at most, so its jobs are carried out in the order in which they came.
"""

import asyncio
import itertools
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

from mentatlab.protocol.errors import Code, MentatError, Unavailable
from mentatlab.streams import redis_scripts as scripts
from mentatlab.streams.redis_server import Command, RedisServer, command
from mentatlab.streams.redis_transaction import (
    NO_FACTS,
    VERSION,
    Cache,
    Facts,
    FactsByLane,
    FactsWanted,
    Transaction,
    held,
)

T = TypeVar("T")

FLIGHTS = 2
"""Pipelines that may be under way at once."""
BATCH = 256
"""Jobs of a run in one call, at most."""
CALL_BYTES = 4 << 20
"""A call takes no further job when its records have so many: Redis does nothing else meanwhile."""
RUNS = 4096
"""Runs that are remembered while nothing is written to them."""
CACHED = 16_384
"""Fields of a run that are remembered; with more all are forgotten, and asked for again."""
TRIES = 100
"""Decisions on one call until others are given the word for a while."""
_PAGE = 1024
_logger = logging.getLogger(__name__)


class RunKeys(NamedTuple):
    """The keys of one run; `scripts` tells what they are."""

    hash: str

    @property
    def all(self) -> tuple[str, str, str, str]:
        return self.hash, self.order, self.lanes, self.news

    @property
    def order(self) -> str:
        return f"{self.hash}:order"

    @property
    def lanes(self) -> str:
        return f"{self.hash}:lanes"

    @property
    def news(self) -> str:
        return f"{self.hash}:news"

    def records(self, stream_id: str) -> str:
        return f"{self.hash}:records:{stream_id}"

    def producers(self, stream_id: str) -> str:
        return f"{self.hash}:producers:{stream_id}"


def keys_of(prefix: str, run_id: str) -> RunKeys:
    return RunKeys(f"{prefix}{{{run_id}}}")


class _Job(Generic[T]):
    """`work` is done again until what it was decided on is true; its last outcome holds."""

    def __init__(self, work: Callable[[Transaction], T]) -> None:
        self._work = work
        self.done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def decide(self, transaction: Transaction) -> None:
        self._error: MentatError | None = None
        try:
            self._result = self._work(transaction)
        except MentatError as error:
            self._error = error

    def settle(self) -> None:
        if self._error is not None:
            self.fail(self._error)
        elif not self.done.done():
            self.done.set_result(self._result)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class _Run:
    """A run that this process writes to, and what it believes of it."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.cache: Cache = {}
        self.waiting: deque[_Job[Any]] = deque()
        self.flying = False


class _Call:
    """Some jobs of one run under way."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.facts: FactsByLane = {}
        self.jobs = [run.waiting.popleft() for _ in range(min(BATCH, len(run.waiting)))]

    def decide(self, transaction: Transaction) -> None:
        """`FactsWanted`. Jobs beyond the size of a call wait for the next one."""
        self.transaction = transaction
        for at, job in enumerate(self.jobs):
            if transaction.size >= CALL_BYTES:
                self.run.waiting.extendleft(reversed(self.jobs[at:]))
                del self.jobs[at:]
                break
            job.decide(transaction)

    def settle(self, found: list[bytes | None] | int, epoch: int, unsure: bool) -> bool:
        """Whether it is over; if not, it is to be decided again, on what was `found`."""
        done = self.transaction
        if isinstance(found, int):
            self._succeed()
            return True
        for address, raw in zip(done.addresses, found, strict=True):
            if raw is not None and address in done.puts and raw[:VERSION] == done.version:
                self._succeed()  # an earlier try was carried out, its answer lost
                return True
            self.run.cache[address] = held(address, raw, epoch)
        if unsure and not done.empty:
            self.fail(_unsure())
            return True
        self.facts.clear()
        return False

    def _succeed(self) -> None:
        self.run.cache |= self.transaction.puts
        if len(self.run.cache) > CACHED:
            self.run.cache.clear()
        for job in self.jobs:
            job.settle()

    def fail(self, error: BaseException) -> None:
        for job in self.jobs:
            job.fail(error)


class RedisWriter:
    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._runs: dict[str, _Run] = {}  # the longest idle first
        self._ready: dict[str, _Run] = {}
        self._flights: set[asyncio.Task[None]] = set()
        self._name, self._count = secrets.token_hex(4), itertools.count()

    async def write(self, run_id: str, work: Callable[[Transaction], T]) -> T:
        """What `work` gives or raises, when what it changes is in Redis. It may be called often.

        `Unavailable` when Redis is away too long; then it may have been carried out.
        """
        run = self._runs.pop(run_id, None) or _Run(run_id)
        self._runs[run_id] = run
        job = _Job(work)
        run.waiting.append(job)
        self._take_off(run)
        self._forget_idle()
        return await job.done

    def forget(self) -> None:
        """Believe nothing any more."""
        for run in self._runs.values():
            run.cache.clear()

    async def aclose(self) -> None:
        await asyncio.gather(*self._flights)

    def _forget_idle(self) -> None:
        for run_id in list(itertools.islice(self._runs, max(0, len(self._runs) - RUNS))):
            run = self._runs[run_id]
            if not run.flying and not run.waiting:
                del self._runs[run_id]

    def _take_off(self, run: _Run) -> None:
        if run.flying:
            return
        self._ready[run.id] = run
        if len(self._flights) < FLIGHTS:
            self._flights.add(asyncio.create_task(self._fly()))

    async def _fly(self) -> None:
        try:
            await self._carry_out_what_is_ready()
        finally:  # at once: what comes before a callback of the task would wait for this flight
            self._flights.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _carry_out_what_is_ready(self) -> None:
        while self._ready:
            runs, self._ready = list(self._ready.values()), {}
            for run in runs:
                run.flying = True
            calls = [_Call(run) for run in runs]
            try:
                await self._carry_out(calls)
            except BaseException as error:
                for call in calls:
                    call.fail(error)
                if not isinstance(error, Exception):
                    raise
                if not isinstance(error, MentatError):  # others wait for this flight
                    _logger.exception("a call to Redis failed")
            finally:
                for run in runs:
                    run.flying = False
                    if run.waiting:
                        self._ready[run.id] = run

    async def _carry_out(self, calls: Sequence[_Call]) -> None:
        """`Unavailable` and what else Redis says to those that are not over."""
        for tries in range(TRIES):
            commands = [await self._decided(call) for call in calls]
            answers = await self._server.commands(*commands)
            epoch = self._server.rules.epoch
            calls = [
                call
                for call, answer in zip(calls, answers.values, strict=True)
                if not call.settle(answer, epoch, answers.unsure)
            ]
            if not calls:
                return
            if tries > 2:  # others write to it all the time: give way, at random
                await asyncio.sleep(random.uniform(0, 0.001 * min(tries, 20)))
        raise Unavailable(
            Code.UNAVAILABLE,
            "too many servers write to this run at once",
            hint="try again; let one server write to a run",
        )

    async def _decided(self, call: _Call) -> Command:
        run = call.run
        while True:
            version = f"{self._name}{next(self._count) & 0xFFFFFFFF:08x}".encode()
            try:
                call.decide(Transaction(version, self._server.rules, run.cache, call.facts))
            except FactsWanted as wanted:
                await self._load(call, wanted)
            else:
                keys = keys_of(self._server.prefix, run.id).all
                return command(scripts.COMMIT, keys, *call.transaction.arguments(run.id))

    async def _load(self, call: _Call, wanted: FactsWanted) -> None:
        """A page of them; those that are missing are known to be."""
        key = keys_of(self._server.prefix, call.run.id).records(wanted.stream_id)
        answer = await self._server.call(scripts.FACTS, (key,), wanted.first, _PAGE)
        ids, texts = answer[::2], answer[1::2]
        found = {
            int(id_.partition(b"-")[0]): Facts(*map(int, text.split()))
            for id_, text in zip(ids, texts, strict=True)
        }
        last = max(found) if len(found) == _PAGE else wanted.last
        facts = call.facts.setdefault(wanted.stream_id, {})
        facts.update(dict.fromkeys(range(wanted.first, last + 1), NO_FACTS))
        facts.update(found)


def _unsure() -> Unavailable:
    return Unavailable(
        Code.UNAVAILABLE,
        "the log was lost on the way: whether this was appended is not known",
        hint="try again; a publisher with a `producer` sends nothing twice",
    )
