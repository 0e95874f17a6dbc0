"""The `sh` blocks of the README and the guides do what they say: in order, in one folder, beside
the files that a document shows (blocks with `file=PATH`)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)

FILE = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks_of(document: Path) -> list[str]:
    return BLOCK.findall(document.read_text())


DOCUMENTS = [
    document
    for document in (ROOT / "README.md", *sorted(GUIDES.glob("*.md")))
    if blocks_of(document)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: a folder with the repository's examples, and a home of his own."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands(place: Path, document: Path):
    for path, content in FILE.findall(document.read_text()):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(content)
    script = "set -euo pipefail\n" + "\n".join(blocks_of(document))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MENTATLAB_", "ENABLE_"))}
    tools = str(Path(sys.executable).parent)
    answer = subprocess.run(
        ["bash", "-m", "-c", script],
        cwd=place,
        env={
            **kept,
            "PATH": f"{tools}{os.pathsep}{kept['PATH']}",
            "MENTATLAB_HOME": str(place / "home"),
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}"
