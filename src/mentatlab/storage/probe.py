"""Width, height, duration and the like, found by a separate, limited process.

Advisory: a probe that fails says so in `probeError` and never fails the upload.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any

import msgspec

from mentatlab.protocol.pins import PinType

_WORKER = Path(__file__).with_name("probe_worker.py")
_RECYCLE = 200  # orders that one process takes; decoders leak


class Prober:
    """One worker process: started by the first order, reused, replaced when it dies or hangs."""

    def __init__(self, *, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._orders = 0

    @property
    def pid(self) -> int | None:
        """The running worker's process id."""
        return None if self._process is None else self._process.pid

    async def probe(self, path: Path, family: PinType) -> dict[str, Any]:
        """What is found in an audio, image or video file; `{"probeError": why}` otherwise."""
        order = msgspec.json.encode({"path": str(path), "family": family}) + b"\n"
        async with self._turn:
            process = await self._worker()
            try:
                async with asyncio.timeout(self._timeout_s):
                    line = await _exchange(process, order)
            except TimeoutError:
                await self._stop()
                return {"probeError": f"it took over {self._timeout_s:g} s"}
            except (
                BaseException
            ):  # cancelled: the worker's answer would be taken for the next one's
                await asyncio.shield(self._stop())
                raise
            if not line:
                self._process = None
                return {"probeError": f"the probe was killed ({_ending(await process.wait())})"}
            return msgspec.json.decode(line)

    async def aclose(self) -> None:
        await self._stop()

    async def _worker(self) -> Process:
        self._orders += 1
        if self._orders > _RECYCLE:
            await self._stop()
        if self._process is None:
            self._orders = 1
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", str(_WORKER)),
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        return self._process

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _exchange(process: Process, order: bytes) -> bytes:
    """One line each way; empty when the worker is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(order)
        await process.stdin.drain()
    except ConnectionError:
        return b""
    return await process.stdout.readline()


def _ending(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit {returncode}"
