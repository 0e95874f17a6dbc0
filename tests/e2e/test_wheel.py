"""What a base install is: the built wheel with msgspec beside it, and nothing else."""

import email
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (path,) = out.glob("mentatlab-*.whl")
    return path


@pytest.fixture(scope="module")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and msgspec only."""
    home = tmp_path_factory.mktemp("base")
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    msgspec = Path(str(distribution("msgspec").locate_file("msgspec")))
    shutil.copytree(msgspec, site / "msgspec")
    return home / "bin" / "python"


def run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)


def test_the_base_needs_msgspec_only(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    base = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert [r.split(">")[0] for r in base] == ["msgspec"]
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_wheel_carries_agents_and_schemas_but_no_weights(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "mentatlab/_agents/echo/manifest.yaml" in names
    assert "mentatlab/_schemas/agent.schema.json" in names
    assert not [n for n in names if n.endswith((".onnx", ".bin", ".pyc")) or "/tests/" in n]


def test_the_sdk_imports_fast_and_light(base_python: Path):
    """Processor time, so that a busy machine does not tell; the best of several runs."""
    code = (
        "import time; start = time.process_time();"
        "import mentatlab.sdk; print(time.process_time() - start)"
    )
    runs = [run(base_python, code) for _ in range(7)]
    assert [r.stderr for r in runs] == [""] * 7
    assert min(float(r.stdout) for r in runs) < 0.1


def test_a_classic_agent_of_the_sdk_runs_on_the_base(base_python: Path, tmp_path: Path):
    agent = tmp_path / "main.py"
    agent.write_text(
        "from mentatlab.sdk import Agent, run\n"
        "class Shout(Agent):\n"
        "    def process(self, inputs):\n"
        "        return {'loud': inputs['text'].upper()}\n"
        "run(Shout)\n"
    )
    line = (
        '{"text": "hello", "spec": {"text": "hello"}, "context": {"run_id": "r", "node_id": "n"}}\n'
    )
    result = subprocess.run(
        [base_python, "-I", agent], input=line, capture_output=True, text=True, check=True
    )
    assert '"loud":"HELLO"' in result.stdout.replace(" ", "")


def test_the_command_line_says_what_to_install(base_python: Path):
    result = run(base_python, "from mentatlab.cli import main; main()")
    assert result.returncode == 1
    assert "MISSING_EXTRA" in result.stderr
    assert "mentatlab[server]" in result.stderr
