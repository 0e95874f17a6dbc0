"""boto3 and aiobotocore as their documentation has them, each in a process of its own.

s3_clients.py LIBRARY put|get|small ENDPOINT ACCESS_KEY SECRET_KEY BUCKET KEY BYTES COUNT

`put` and `get` move one object, in parts of 16 MiB with 4 in flight where the library takes parts;
`small` puts COUNT objects, 32 in flight. It prints what it took, as JSON.
"""

import asyncio
import io
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import uvloop
from aiobotocore.session import get_session
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

PIECE = os.urandom(1 << 20)
PART, TOGETHER, IN_FLIGHT = 16 << 20, 4, 32


class Job(NamedTuple):
    what: str
    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    key: str
    size: int
    count: int

    def options(self) -> dict[str, Any]:
        return {
            "endpoint_url": self.endpoint,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "region_name": "us-east-1",
        }


class _Body(io.RawIOBase):
    """So many bytes to read."""

    def __init__(self, size: int) -> None:
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        self._left -= wanted
        whole, rest = divmod(wanted, len(PIECE))
        return PIECE * whole + PIECE[:rest]


def with_boto3(job: Job) -> None:
    client = boto3.client("s3", **job.options(), config=Config(max_pool_connections=IN_FLIGHT))
    config = TransferConfig(multipart_chunksize=PART, max_concurrency=TOGETHER)
    if job.what == "put":
        client.list_buckets()
        with told():
            client.upload_fileobj(_Body(job.size), job.bucket, job.key, Config=config)
    elif job.what == "get":
        client.list_buckets()
        with told():
            body = client.get_object(Bucket=job.bucket, Key=job.key)["Body"]
            while body.read(1 << 20):
                pass
    else:
        data = PIECE[: job.size]

        def put(n: int) -> None:
            client.put_object(Bucket=job.bucket, Key=f"{job.key}/{n}", Body=data)

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(put, range(-IN_FLIGHT, 0)))
            with told():
                list(pool.map(put, range(job.count)))


async def with_aiobotocore(job: Job) -> None:
    async with get_session().create_client("s3", **job.options()) as client:
        await client.list_buckets()
        if job.what == "put":
            with told():
                await _in_parts(client, job)
        elif job.what == "get":
            with told():
                answer = await client.get_object(Bucket=job.bucket, Key=job.key)
                async for _ in answer["Body"].iter_chunks(1 << 18):
                    pass
        else:

            async def put(n: int) -> None:
                key = f"{job.key}/{n}"
                await client.put_object(Bucket=job.bucket, Key=key, Body=PIECE[: job.size])

            await _together(put, range(-IN_FLIGHT, 0), IN_FLIGHT)
            with told():
                await _together(put, range(job.count), IN_FLIGHT)


async def _in_parts(client: Any, job: Job) -> None:
    place = {"Bucket": job.bucket, "Key": job.key}
    upload = (await client.create_multipart_upload(**place))["UploadId"]
    parts: list[dict[str, Any]] = []

    async def put(number: int) -> None:
        data = _Body(min(PART, job.size - number * PART)).read()
        answer = await client.upload_part(
            **place, UploadId=upload, PartNumber=number + 1, Body=data
        )
        parts.append({"PartNumber": number + 1, "ETag": answer["ETag"]})

    await _together(put, range(-(-job.size // PART)), TOGETHER)
    parts.sort(key=lambda part: part["PartNumber"])
    await client.complete_multipart_upload(
        **place, UploadId=upload, MultipartUpload={"Parts": parts}
    )


async def _together(work: Callable[[int], Awaitable[None]], numbers: range, most: int) -> None:
    waiting = iter(numbers)

    async def some() -> None:
        for number in waiting:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(most):
            group.create_task(some())


@contextmanager
def told() -> Generator[None]:
    """Seconds, processor seconds, and the growth of this process's memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, begun = _memory("VmRSS"), time.process_time(), time.perf_counter()
    yield
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "growth": _memory("VmHWM") - before}))


def _memory(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    library, *words, size, count = sys.argv[1:]
    job = Job(*words, size=int(size), count=int(count))
    if library == "boto3":
        with_boto3(job)
    else:
        uvloop.run(with_aiobotocore(job))
