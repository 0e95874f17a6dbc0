"""Jina: a Flow of Executors, each a process, over gRPC. Nothing is recorded."""

import asyncio
from importlib.metadata import version
from pathlib import Path

import measure
from docarray import BaseDoc, DocList
from jina import Executor, Flow, requests


class Text(BaseDoc):
    text: str = measure.WORD


class Step(Executor):
    @requests
    def step(self, docs: DocList[Text], **_: object) -> DocList[Text]:
        return docs


async def program(rounds: int, seconds: float, folder: Path) -> measure.Measured:
    del folder
    flows = {steps: Flow(asyncio=True, quiet=True) for steps in (1, 3)}
    for steps in flows:
        for _ in range(steps):
            flows[steps] = flows[steps].add(uses=Step)

    async def run(steps: int) -> None:
        answers = flows[steps].post("/", inputs=DocList[Text]([Text()]), return_type=DocList[Text])
        async for _ in answers:
            pass

    for flow in flows.values():
        await asyncio.to_thread(flow.start)
    found = await measure.measured(run, rounds, seconds)
    for flow in flows.values():
        await asyncio.to_thread(flow.close)
    found.version = version("jina")
    return found


if __name__ == "__main__":
    measure.main(program)
