"""The tus clients of Node, installed once into a cache folder by npm, pinned by their lock file."""

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("upload_clients")
CACHE = Path(__file__).parents[2] / "out" / "upload-clients"
LEAST_NODE = 20
_DEADLINE_S = 100


def node_clients() -> Path:
    """The folder with the clients' scripts, ready to run. Skips without Node, except in CI."""
    missing = _missing()
    if missing and os.environ.get("MENTATLAB_CI"):
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install()
    return CACHE


async def drive(script: str, **order: Any) -> Any:
    """What the script prints, as JSON; its failure fails the test."""
    folder = await asyncio.to_thread(node_clients)
    process = await asyncio.create_subprocess_exec(
        *("node", script, json.dumps(order)),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_DEADLINE_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def _missing() -> str:
    if not shutil.which("npm") or not shutil.which("node"):
        return "node and npm are not installed"
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    major = int(told.stdout.strip().removeprefix("v").partition(".")[0])
    return "" if major >= LEAST_NODE else f"node {major} is older than {LEAST_NODE}"


def _install() -> None:
    lock = (SOURCE / "package-lock.json").read_bytes()
    installed = CACHE / "installed-lock.json"
    if not installed.exists() or installed.read_bytes() != lock:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, CACHE)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=CACHE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        installed.write_bytes(lock)
    for script in SOURCE.glob("*.mjs"):
        shutil.copy(script, CACHE)
