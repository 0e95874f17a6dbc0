"""Real agent processes for the runner tests: programs as text, started by a `LocalRunner`."""

import asyncio
import os
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mentatlab.protocol.agent import AgentProgram, Origin, Resources, Warm
from mentatlab.protocol.events import AgentEvent, Log
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.stdio import Context
from mentatlab.runners import Invocation, LocalRunner, Outcome

TEXT = (Pin("text", PinType.STRING),)
ECHO = (
    'import json, sys; payload = json.load(sys.stdin); print(json.dumps({"text": payload["text"]}))'
)


class Bench:
    """Makes invocations of small Python programs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def script(self, source: str) -> tuple[str, ...]:
        self._count += 1
        path = self.folder / f"agent{self._count}.py"
        path.write_text(textwrap.dedent(source))
        return (sys.executable, str(path))

    def invocation(
        self,
        command: str | Sequence[str],
        *,
        inputs: dict[str, Any] | None = None,
        outputs: tuple[Pin, ...] = TEXT,
        warm: Warm | None = None,
        env: tuple[str, ...] = (),
        run_id: str = "rn_test",
        node: str = "node",
        item: int | None = None,
        agent: str = "test.agent",
        workspace: str = "default",
        resources: Resources | None = None,
        origins: Mapping[str, Origin] | None = None,
        **more: Any,
    ) -> Invocation:
        argv = self.script(command) if isinstance(command, str) else tuple(command)
        program = AgentProgram(
            id=agent,
            version="1.0.0",
            command=argv,
            directory=self.folder,
            outputs=outputs,
            warm=warm,
            env=env,
            resources=resources or Resources(),
            origins=origins or {},
        )
        return Invocation(
            workspace=workspace,
            program=program,
            inputs=inputs or {},
            params=more.pop("params", {}),
            context=Context(
                run_id=run_id, node_id=node, item=item, out_dir=str(self.folder / "out")
            ),
            scratch=self.folder,
            resources=resources or Resources(),
            **more,
        )


async def perform(
    runner: LocalRunner, invocation: Invocation, chunks: Sequence[tuple[str, Any]] = ()
) -> tuple[Outcome, list[AgentEvent]]:
    """Feed the chunks, end the inputs, read all events, and wait for the outcome."""
    async with runner.attempt(invocation) as attempt, asyncio.TaskGroup() as tasks:

        async def read() -> list[AgentEvent]:
            return [event async for event in attempt.events()]

        reading = tasks.create_task(read())
        for seq, (pin, data) in enumerate(chunks, 1):
            await attempt.send_chunk(pin, seq, data=data)
        for pin in invocation.stream_inputs:
            await attempt.end_input(pin)
        outcome = await attempt.outcome()
        return outcome, await reading


def logs(events: Sequence[AgentEvent]) -> str:
    return "\n".join(e.message for e in events if isinstance(e, Log))


def alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def eventually(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    """Poll a foreign process's state; fails after the deadline."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def sync_eventually(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
