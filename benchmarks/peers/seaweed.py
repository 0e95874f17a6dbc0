"""SeaweedFS with its S3 and its tus, ready to take objects, in a folder of its own."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

READY_S = 30
ACCESS_KEY, SECRET_KEY, BUCKET = "bench", "bench-secret", "bench"
_KEYS = {
    "identities": [
        {
            "name": "bench",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}
_ROLES = ("master", "volume", "filer", "s3")


class Seaweed(NamedTuple):
    """The URLs of its S3 and of its filer, which speaks tus below `/.tus`."""

    pid: int
    s3: str
    filer: str


@contextmanager
def seaweed(command: Sequence[str], within: Sequence[str], place: Path) -> Generator[Seaweed]:
    """`within`: a command that becomes the one behind it; `place`: on the disk to measure."""
    folder = Path(tempfile.mkdtemp(dir=place))
    ports = dict(zip(_ROLES, _free_ports(len(_ROLES)), strict=True))
    grpc = dict(zip(_ROLES, _free_ports(len(_ROLES)), strict=True))
    keys = folder / "keys.json"
    keys.write_text(json.dumps(_KEYS))
    options = [f"-{role}.port={ports[role]}" for role in _ROLES]
    options += [f"-{role}.port.grpc={grpc[role]}" for role in _ROLES]
    options += ["-ip=127.0.0.1", "-filer", "-s3", f"-s3.config={keys}", f"-dir={folder}"]
    options += ["-master.volumeSizeLimitMB=1024", "-volume.max=0", "-master.telemetry=false"]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.preStopSeconds=0"]
    with tempfile.TemporaryFile() as log, ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        process = subprocess.Popen(
            [*within, *command, f"-logdir={folder}", "server", *options], stdout=log, stderr=log
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        filer = f"http://127.0.0.1:{ports['filer']}"
        _await(lambda: _makes_bucket(filer), process, log)
        s3 = f"http://127.0.0.1:{ports['s3']}"
        _await(lambda: _listening(ports["s3"]), process, log)
        yield Seaweed(process.pid, s3, filer)


def _makes_bucket(filer: str) -> bool:
    """Also that it stores: a file above what it would keep in its own database."""
    probe = urllib.request.Request(f"{filer}/probe", data=bytes(1 << 20), method="PUT")
    bucket = urllib.request.Request(f"{filer}/buckets/{BUCKET}/", method="POST")
    try:
        for request in (probe, bucket):
            urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        return False
    return True


def _await(
    condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: IO[bytes]
) -> None:
    deadline = time.monotonic() + READY_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise RuntimeError(f"SeaweedFS is not ready: {log.read().decode()[-2000:]}")
        time.sleep(0.05)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
