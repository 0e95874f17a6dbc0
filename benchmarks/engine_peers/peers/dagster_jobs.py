"""Dagster: jobs of ops, recorded by an instance of its own (SQLite), executed in this process: its
own launchers begin a process for every run."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import measure
from dagster import DagsterInstance, JobDefinition, job, op


@op
def begin() -> str:
    return measure.WORD


@op
def step(text: str) -> str:
    return text


@job(logger_defs={})
def one() -> None:
    begin()


@job(logger_defs={})
def three() -> None:
    step.alias("last")(step.alias("middle")(begin()))


async def program(rounds: int, seconds: float, folder: Path) -> measure.Measured:
    logging.disable()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(measure.IN_FLIGHT))
    with DagsterInstance.local_temp(str(folder)) as instance:

        async def run(steps: int) -> None:
            done = await asyncio.to_thread(_execute, three if steps == 3 else one, instance)
            assert done, "the job failed"

        found = await measure.measured(run, rounds, seconds)
    found.version = version("dagster")
    return found


def _execute(which: JobDefinition, instance: DagsterInstance) -> bool:
    return which.execute_in_process(instance=instance).success


if __name__ == "__main__":
    measure.main(program)
