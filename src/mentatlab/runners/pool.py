"""The warm pool: which worker serves, when one is started, and when one must go."""

import asyncio
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from mentatlab.protocol.errors import Code
from mentatlab.runners.failures import start_failure
from mentatlab.runners.host import Host
from mentatlab.runners.ledger import Ledger, Need
from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runners.result import Ending, Heard, conclude, failed
from mentatlab.runners.services import Restarts
from mentatlab.runners.worker import Worker, WorkerDiedError

Blocked = Literal["own", "machine"]
"""Why there is no place: its own agent's workers are all busy, or the machine is."""


class Key(NamedTuple):
    """Whom a worker may serve."""

    workspace: str
    agent: str
    version: str
    gpu: int
    memory: int  # bytes it may use: a retry with more gets a worker of its own
    environment: bytes  # hash of command, folder, program file and variables


class NotWarm(NamedTuple):
    """The agent does not speak the warm protocol; `why` is for the log."""

    why: str


def key_of(invocation: Invocation) -> Key:
    program, resources = invocation.program, invocation.resources
    variables = sorted(invocation.env.items())
    start = [program.command, str(program.directory), program.fixed_env, variables]
    digest = hashlib.sha256(msgspec.json.encode([*start, _stamps(invocation)])).digest()
    return Key(
        invocation.workspace,
        program.id,
        program.version,
        resources.gpu,
        resources.memory,
        digest,
    )


def sized(invocation: Invocation) -> Invocation:
    """With the memory of the worker that it needs: as the manifest says, or that doubled as often
    as its inputs (or a failure) ask for. A service is one for all.
    """
    said, asked = invocation.program.resources, invocation.resources
    if asked.memory == said.memory:
        return invocation
    memory = said.memory
    service = invocation.program.warm is not None and invocation.program.warm.service
    while memory < asked.memory and not service:
        memory *= 2
    resources = msgspec.structs.replace(asked, memory=memory)
    return msgspec.structs.replace(invocation, resources=resources)


def _stamps(invocation: Invocation) -> list[int]:
    """Of the program's own files on its command line: an edited agent gets a new process."""
    program = invocation.program
    own = [Path(word) for word in program.command if word.startswith(f"{program.directory}/")]
    return [path.stat().st_mtime_ns for path in own if path.is_file()]


class WarmPool:
    """At most `max_workers` processes within the pool's memory. Least-loaded first; a new one while
    all are busy and there is room; the ones that have been idle longest make room."""

    def __init__(self, host: Host, ledger: Ledger) -> None:
        self._host = host
        self._settings = host.settings
        self._ledger = ledger
        self._memory = min(self._settings.pool_memory or host.machine.memory, host.machine.memory)
        self._workers: dict[Key, list[Worker]] = {}
        self._keys: dict[Worker, Key] = {}  # of every living process
        self._needs: dict[Worker, Need] = {}
        self._never_ready: set[Key] = set()
        self._timers: dict[Worker, asyncio.TimerHandle] = {}
        self._leaving: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._restarts: Restarts[Key] = Restarts(self._restart, lambda: self.changed())
        self._closed = False
        self.changed: Callable[[], None] = lambda: None
        """Called when there may be room; whoever hands out places puts itself here."""

    @property
    def memory(self) -> int:
        """Bytes that all its processes together may take."""
        return self._memory

    def was_never_ready(self, invocation: Invocation) -> bool:
        return bool(self._never_ready) and key_of(invocation) in self._never_ready

    # ------------------------------------------------------------------ places

    def place(self, invocation: Invocation, need: Need, *, urgent: bool) -> Worker | Blocked:
        """A place in a worker that is ready or starting, to be given back by `release`.

        `urgent` takes it beyond the limits: others wait for this one.
        """
        key = key_of(invocation)
        workers = [w for w in self._workers.get(key, ()) if not w.retired]
        free = [w for w in workers if w.load < w.capacity]
        if free:
            worker = min(free, key=_preference)
            if worker.load or urgent or self.make_room(need, instead_of=worker):
                return self._take(worker, need)
            return "machine"
        if blocked := self._cannot_start(key, invocation, len(workers), need, urgent=urgent):
            return blocked
        return self._take(self._start(key, invocation, need), need)

    def _cannot_start(
        self, key: Key, invocation: Invocation, workers: int, need: Need, *, urgent: bool
    ) -> Blocked | None:
        if invocation.program.warm and invocation.program.warm.service:
            return "own" if workers or self._restarts.waiting(key) else None
        if urgent:
            return None
        if workers >= self._settings.max_workers_per_agent or not self._free_seat():
            return "own"
        in_pool = self._pool_room(need)
        return None if in_pool and self.make_room(need) else "machine"

    def _take(self, worker: Worker, need: Need) -> Worker:
        worker.load += 1
        if worker.load == 1:
            self._ledger.hold(worker, need)
            self._stop_timer(worker)
        return worker

    def _start(self, key: Key, invocation: Invocation, need: Need) -> Worker:
        worker = Worker(invocation, self._host, gone=self._gone)
        self._workers.setdefault(key, []).append(worker)
        self._keys[worker], self._needs[worker] = key, need
        self._ledger.hold(worker, need)
        return worker

    def release(self, worker: Worker) -> None:
        worker.load -= 1
        if worker.load == 0:
            self._rest(worker)
        self.changed()

    # ------------------------------------------------------------------ room

    def make_room(self, need: Need, *, instead_of: Worker | None = None) -> bool:
        """Whether it fits now; if not, idle workers are ended and `changed` follows."""
        if self._ledger.fits(need, instead_of=instead_of):
            return True
        idle = [w for w in self._idle() if w is not instead_of]
        for worker in idle:  # what it is known to use is less than what it may use
            self._ledger.hold(worker, self._at_rest(worker))
        if self._ledger.fits(need, instead_of=instead_of):
            return True
        for worker in idle:
            if self._ledger.fits(need, instead_of=instead_of, without=self._leaving):
                break
            self._retire(worker)
        return False

    def _free_seat(self) -> bool:
        """Of `max_workers`; those that leave have left."""
        if len(self._keys) - len(self._leaving) < self._settings.max_workers:
            return True
        idle = self._idle()
        if idle:
            self._retire(idle[0])
        return bool(idle)

    def _pool_room(self, need: Need) -> bool:
        staying = [w for w in self._keys if w not in self._leaving]
        over = sum(self._ledger.held_by(w).memory for w in self._keys) + need.memory - self._memory
        if over <= 0:
            return True
        for worker in self._idle():
            self._ledger.hold(worker, self._at_rest(worker))
        kept = sum(self._ledger.held_by(w).memory for w in staying) + need.memory
        for worker in self._idle():
            if kept <= self._memory:
                break
            kept -= self._ledger.held_by(worker).memory
            self._retire(worker)
        return sum(self._ledger.held_by(w).memory for w in self._keys) + need.memory <= self._memory

    def _at_rest(self, worker: Worker) -> Need:
        return Need(0.0, worker.rss() or self._needs[worker].memory, self._needs[worker].gpu)

    def _idle(self) -> list[Worker]:
        """Those that may be ended, longest idle first."""
        found = [w for w in self._keys if w.load == 0 and not w.retired and not _is_service(w)]
        return sorted(found, key=lambda w: w.idle_since)

    # ------------------------------------------------------------------ beginning

    async def until_ready(
        self, worker: Worker, invocation: Invocation
    ) -> Worker | NotWarm | Outcome:
        warm = invocation.program.warm
        assert warm is not None
        patience = min(warm.startup_timeout_s, invocation.start_timeout_s)
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(worker.ready)
        except TimeoutError:
            self._never_ready.add(self._keys.get(worker) or key_of(invocation))
            self._retire(worker)
            return NotWarm(f"the agent did not say ready within {patience:g} s")
        except (OSError, ValueError) as error:
            return start_failure(invocation, error)
        except WorkerDiedError:
            return _died_at_start(invocation, worker)
        return worker

    # ------------------------------------------------------------------ end

    def _rest(self, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        worker.idle_since = loop.time()
        if worker.retired or worker.worn or self._closed:
            self._retire(worker)
            return
        need = self._needs[worker]
        self._ledger.hold(worker, Need(0.0, need.memory, need.gpu))
        warm = worker.program.warm
        if warm and not warm.service and math.isfinite(warm.idle_ttl_s):
            self._timers[worker] = loop.call_later(warm.idle_ttl_s, self._expire, worker)

    def _expire(self, worker: Worker) -> None:
        if worker.load == 0:
            self._retire(worker)

    def _retire(self, worker: Worker) -> None:
        """Give it no more work, and end its process."""
        worker.retired = True
        self._stop_timer(worker)
        if worker in self._keys and worker not in self._leaving:
            self._leaving.add(worker)
            task = asyncio.create_task(worker.retire())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _gone(self, worker: Worker) -> None:
        self._stop_timer(worker)
        self._ledger.drop(worker)
        key = self._keys.pop(worker)
        del self._needs[worker]
        workers = self._workers[key]
        workers.remove(worker)
        if not workers:
            del self._workers[key]
        dismissed = worker in self._leaving
        self._leaving.discard(worker)
        if _is_service(worker) and not dismissed and not self._closed:
            self._restarts.note(key, worker)
        self.changed()

    def _restart(self, key: Key, worker: Worker) -> None:
        """A service in place of the one that has ended."""
        if not self._closed and key not in self._workers:
            need = Need(0.0, self._host.memory_for(worker.invocation))
            self._start(key, worker.invocation, need)
            self.changed()

    def _stop_timer(self, worker: Worker) -> None:
        if timer := self._timers.pop(worker, None):
            timer.cancel()

    async def aclose(self) -> None:
        self._closed = True
        self._restarts.close()
        for worker in list(self._keys):
            self._retire(worker)
        while self._ending:
            await asyncio.wait(self._ending)


def _preference(worker: Worker) -> tuple[bool, int]:
    """A batch that is being gathered first, then the least loaded."""
    gathering = worker.batches is not None and worker.batches.gathering
    return (not gathering, worker.load)


def _is_service(worker: Worker) -> bool:
    return worker.program.warm is not None and worker.program.warm.service


def _died_at_start(invocation: Invocation, worker: Worker) -> Outcome:
    """Exit codes mean the same as elsewhere; the code says that it never began."""
    ending = Ending(
        exit_code=worker.exit_code or 1,
        cause=worker.breach,
        oom=worker.oom,
        last_words=worker.stderr.last_words,
        detail=worker.detail,
    )
    told = conclude(invocation.program, Heard(invocation.program), ending)
    if worker.breach:
        return told
    return failed(
        told.error_class or "permanent",
        Code.AGENT_START_FAILED,
        f"{invocation.program.id} ended before it was ready: {told.message}",
        hint="run it by hand with MENTAT_WARM=1; it must print a `ready` event",
        exit_code=worker.exit_code,
    )
