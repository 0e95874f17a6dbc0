"""Starts a peer on one core, ready to be measured."""

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

READY_S = 20


class Server(NamedTuple):
    pid: int
    port: int


@contextmanager
def hub(command: list[str], core: int) -> Generator[Server]:
    """One of the hubs beside this file: its argument is the port."""
    port = _free_port()
    with _running([*command, str(port)], core, port) as server:
        yield server


@contextmanager
def nginx(command: list[str], core: int, folder: Path) -> Generator[Server]:
    """Gives the files of `folder`, one worker."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as place:
        config = Path(place, "nginx.conf")
        config.write_text(_NGINX.format(place=place, port=port, folder=folder))
        with _running([*command, "-c", str(config), "-p", place], core, port) as server:
            yield server


_NGINX = """
daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off; sendfile on; sendfile_max_chunk 2m; keepalive_requests 1000000;
    client_body_temp_path {place}/1; proxy_temp_path {place}/2; fastcgi_temp_path {place}/3;
    uwsgi_temp_path {place}/4; scgi_temp_path {place}/5;
    server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


@contextmanager
def nats(command: list[str], core: int) -> Generator[Server]:
    port = _free_port()
    websocket = {"host": "127.0.0.1", "port": port, "no_tls": True}
    config = {"host": "127.0.0.1", "port": -1, "websocket": websocket}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "nats.conf")
        file.write_text(json.dumps(config))
        with _running([*command, "--config", str(file)], core, port) as server:
            yield server


@contextmanager
def redis(command: list[str], core: int) -> Generator[Server]:
    port = _free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with _running([*command, *options], core, port) as server:
        yield server


@contextmanager
def _running(command: list[str], core: int, port: int) -> Generator[Server]:
    pinned = ["taskset", "-c", str(core), *command]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(pinned, stdout=log, stderr=log)
        with process:
            try:
                _await(lambda: process.poll() is not None or _listening(port))
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"{command} ended: {log.read().decode()[-2000:]}")
                yield Server(process.pid, port)
            finally:
                process.kill()


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready within {READY_S} s")
        time.sleep(0.02)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
