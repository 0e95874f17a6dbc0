"""A real nginx with the shipped configuration, on a free port, in a folder of its own."""

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

SHIPPED = Path(__file__).parents[2] / "deploy" / "nginx" / "nginx.conf"


class Nginx(NamedTuple):
    url: str
    trust: Path
    """The authority of its certificate, as PEM."""
    folder: Path

    @property
    def access_log(self) -> str:
        return (self.folder / "access.log").read_text()


def program() -> str:
    """Else the test is skipped, with MENTATLAB_CI=1 it fails."""
    if found := shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin"):
        return found
    reason = "there is no nginx in the PATH (apt-get install nginx)"
    if os.environ.get("MENTATLAB_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def nginx_before(server: str, home: Path, folder: Path) -> Generator[Nginx]:
    """`server` is its HOST:PORT. Answers when entered."""
    folder.mkdir()
    port, plain = _free_port(), _free_port()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "trust.pem"))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
    config = folder / "nginx.conf"
    config.write_text(_adapted(SHIPPED.read_text(), server, home, folder, port, plain))
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [program(), "-p", str(folder), "-c", str(config), "-g", "daemon off;"], stderr=stderr
        )
    try:
        deadline = time.monotonic() + 20
        while not _answers(port):
            assert process.poll() is None, (folder / "stderr").read_text()
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.01)
        yield Nginx(f"https://127.0.0.1:{port}", folder / "trust.pem", folder)
    finally:
        process.terminate()
        process.wait(20)


def _adapted(config: str, server: str, home: Path, folder: Path, port: int, plain: int) -> str:
    """What it tells to change, and what only the system's own nginx may write to."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    changes = {
        r"user mentatlab;": f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
        r"server 10\.0\.0\.5:7070;": f"server {server};",
        r"/etc/mentatlab/(cert|key)\.pem": f"{folder}/cert.pem",
        r"/var/lib/mentatlab/": f"{home}/",
        r"/var/cache/nginx/mentatlab": f"{folder}/cache",
        r"/var/log/nginx": str(folder),
        r"/run/nginx\.pid": f"{folder}/pid",
        r"listen \[::\]:\d+.*": "",
        r"listen 443 ": f"listen 127.0.0.1:{port} ",
        r"listen 80;": f"listen 127.0.0.1:{plain};",
        r"http \{\n": f"http {{\n{temporary}",
    }
    for pattern, text in changes.items():
        config, changed = re.subn(pattern, text, config)
        assert changed, pattern
    return config


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
