"""The warm pool: which worker serves, when one is started, and when one must go."""

import asyncio
import hashlib
from typing import NamedTuple

import msgspec

from mentatlab.protocol.errors import Code
from mentatlab.runners.child import Guardian
from mentatlab.runners.failures import start_failure
from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runners.result import Ending, Heard, conclude, failed
from mentatlab.runners.settings import RunnerSettings
from mentatlab.runners.warm import Worker, WorkerDiedError


class Key(NamedTuple):
    workspace: str
    agent: str
    version: str
    environment: bytes  # hash of command, folder and variables


class NotWarm(NamedTuple):
    """The agent does not speak the warm protocol; `why` is for the log."""

    why: str


def key_of(invocation: Invocation) -> Key:
    program = invocation.program
    variables = sorted(invocation.env.items())
    start = [program.command, str(program.directory), program.fixed_env, variables]
    digest = hashlib.sha256(msgspec.json.encode(start)).digest()
    return Key(invocation.workspace, program.id, program.version, digest)


class WarmPool:
    """At most `max_workers` processes. Least-loaded first; a new one while all are busy and there
    is room; the one that has been idle longest makes room; otherwise one waits."""

    def __init__(self, settings: RunnerSettings, watcher: Guardian) -> None:
        self._settings = settings
        self._guardian = watcher
        self._workers: dict[Key, list[Worker]] = {}
        self._never_ready: set[Key] = set()
        self._changed = asyncio.Condition()
        self._timers: dict[Worker, asyncio.TimerHandle] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False

    async def acquire(self, invocation: Invocation) -> Worker | NotWarm | Outcome:
        """A ready worker with a place in it, to be given back by `release`."""
        key = key_of(invocation)
        if key in self._never_ready:
            return NotWarm("the agent did not say ready before")
        worker = await self._place(key, invocation)
        try:
            return await self._until_ready(key, worker, invocation)
        except BaseException:
            await self.release(worker)
            raise

    async def _place(self, key: Key, invocation: Invocation) -> Worker:
        async with self._changed:
            while (worker := self._find(key, invocation)) is None:
                await self._changed.wait()
            worker.load += 1
            self._stop_timer(worker)
            return worker

    def _find(self, key: Key, invocation: Invocation) -> Worker | None:
        workers = [w for w in self._workers.get(key, ()) if not w.retired]
        free = [w for w in workers if w.load < w.capacity]
        if free:
            return min(free, key=lambda w: w.load)
        if len(workers) >= self._settings.max_workers_per_agent or not self._make_room():
            return None
        worker = Worker(invocation, self._settings, self._guardian)
        self._workers.setdefault(key, []).append(worker)
        return worker

    def _make_room(self) -> bool:
        everyone = [w for workers in self._workers.values() for w in workers]
        if len(everyone) < self._settings.max_workers:
            return True
        idle = [w for w in everyone if w.load == 0]
        if not idle:
            return False
        self._retire(min(idle, key=lambda w: w.idle_since))
        return True

    async def _until_ready(
        self, key: Key, worker: Worker, invocation: Invocation
    ) -> Worker | NotWarm | Outcome:
        warm = invocation.program.warm
        assert warm is not None
        patience = min(warm.startup_timeout_s, invocation.start_timeout_s)
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(worker.ready)
        except TimeoutError:
            self._never_ready.add(key)
            await self._give_up(worker)
            return NotWarm(f"the agent did not say ready within {patience:g} s")
        except (OSError, ValueError) as error:
            await self._give_up(worker)
            return start_failure(invocation, error)
        except WorkerDiedError:
            await self._give_up(worker)
            return _died_at_start(invocation, worker)
        return worker

    async def _give_up(self, worker: Worker) -> None:
        self._retire(worker)
        await self.release(worker)

    async def release(self, worker: Worker) -> None:
        async with self._changed:
            worker.load -= 1
            if worker.load == 0:
                self._rest(worker)
            self._changed.notify_all()

    def _rest(self, worker: Worker) -> None:
        worker.idle_since = asyncio.get_running_loop().time()
        if worker.retired or worker.worn or self._closed:
            self._retire(worker)
        elif warm := worker.program.warm:
            loop = asyncio.get_running_loop()
            self._timers[worker] = loop.call_later(warm.idle_ttl_s, self._expire, worker)

    def _expire(self, worker: Worker) -> None:
        if worker.load == 0:
            self._retire(worker)

    def _retire(self, worker: Worker) -> None:
        """Give it no more work, and end its process when what it has is done."""
        worker.retired = True
        self._stop_timer(worker)
        for key, workers in list(self._workers.items()):
            if worker in workers:
                workers.remove(worker)
                if not workers:
                    del self._workers[key]
                task = asyncio.create_task(worker.retire())
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)

    def _stop_timer(self, worker: Worker) -> None:
        if timer := self._timers.pop(worker, None):
            timer.cancel()

    async def aclose(self) -> None:
        self._closed = True
        for worker in [w for workers in self._workers.values() for w in workers]:
            self._retire(worker)
        while self._retiring:
            await asyncio.wait(self._retiring)


def _died_at_start(invocation: Invocation, worker: Worker) -> Outcome:
    """Exit codes mean the same as elsewhere; the code says that it never began."""
    ending = Ending(
        exit_code=worker.exit_code or 1, oom=worker.oom, last_words=worker.stderr.last_words
    )
    told = conclude(invocation.program, Heard(invocation.program), ending)
    return failed(
        told.error_class or "permanent",
        Code.AGENT_START_FAILED,
        f"{invocation.program.id} ended before it was ready: {told.message}",
        hint="run it by hand with MENTAT_WARM=1; it must print a `ready` event",
        exit_code=worker.exit_code,
    )
