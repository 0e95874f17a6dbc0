"""Pipecat: frames through a pipeline of processors, in one process. Nothing is recorded; a run is a
frame that has come through."""

import asyncio
import sys
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import measure
from loguru import logger
from pipecat.frames.frames import Frame, TextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineTask
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

CHUNKS = 10_000


class Step(FrameProcessor):
    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


class Sink(FrameProcessor):
    """Hands out what has come through."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: asyncio.Queue[str] = asyncio.Queue()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TextFrame):
            self.arrived.put_nowait(frame.text)
        await self.push_frame(frame, direction)


class Line:
    def __init__(self, steps: int) -> None:
        self._sink = Sink()
        self._task = PipelineTask(Pipeline([*(Step() for _ in range(steps)), self._sink]))
        runner = PipelineRunner(handle_sigint=False)
        self._running = asyncio.create_task(runner.run(self._task))

    async def run(self) -> str:
        await self._task.queue_frame(TextFrame(measure.WORD))
        return await self._sink.arrived.get()

    async def arrivals(self) -> AsyncIterator[str]:
        await self._task.queue_frames([TextFrame(measure.WORD) for _ in range(CHUNKS)])
        for _ in range(CHUNKS):
            yield await self._sink.arrived.get()

    async def close(self) -> None:
        await self._task.cancel()
        await asyncio.wait([self._running])


async def program(rounds: int, seconds: float, folder: Path) -> measure.Measured:
    del folder
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    lines = {steps: Line(steps) for steps in (1, 3)}
    found = await measure.measured(lambda steps: lines[steps].run(), rounds, seconds)
    found.chunks = await measure.chunk_rate(lines[1].arrivals())
    for line in lines.values():
        await line.close()
    found.version = version("pipecat-ai")
    return found


if __name__ == "__main__":
    measure.main(program)
