"""What the reference shows is what the code does: its examples are loaded, checked and run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mentatlab.flows import (
    Manifest,
    ManifestValidator,
    check_flow,
    compile_plan,
    load_flow,
    load_manifest,
)
from mentatlab.flows.manifest import PROFILES

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"


def blocks(page: str, language: str) -> list[str]:
    text = (REFERENCE / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def manifests() -> list[str]:
    shown = blocks("manifest.md", "yaml") + blocks("flow.md", "yaml")
    return [text for text in shown if text.startswith("id:")]


FLOWS = [text for text in blocks("flow.md", "yaml") if text.startswith("apiVersion:")]


@pytest.fixture(scope="module")
def known() -> dict[str, Manifest]:
    shipped = [path.read_text() for path in ROOT.glob("agents/*/manifest.yaml")]
    loaded = [load_manifest(text) for text in [*manifests(), *shipped]]
    return {manifest.id: manifest for manifest in loaded}


@pytest.mark.parametrize("text", manifests())
def test_manifests_that_are_shown_are_valid(text: str) -> None:
    problems = ManifestValidator().add_multimodal_rules().validate(text)
    assert [p for p in problems if p.severity == "error"] == []
    assert load_manifest(text).old is ("older" in text or "upper" in text or "join" in text)


@pytest.mark.parametrize("text", FLOWS)
def test_flows_that_are_shown_can_run(text: str, known: dict[str, Manifest]) -> None:
    assert check_flow(load_flow(text), known.get) == []


def test_the_inputs_and_outputs_that_are_told(known: dict[str, Manifest]) -> None:
    plan = compile_plan(load_flow(FLOWS[-1]), known.get)
    assert [i.name for i in plan.inputs] == ["first", "second"]
    assert plan.outputs == (("second", "text"),)


@pytest.mark.parametrize(
    ("page", "prints"),
    [("manifest.md", ""), ("flow.md", "['first', 'second'] (('second', 'text'),)\n")],
)
def test_the_python_that_is_shown_runs(page: str, prints: str, tmp_path: Path) -> None:
    (tmp_path / "flow.mlab").write_text(FLOWS[-1])
    (tmp_path / "manifest.yaml").write_text(manifests()[-1])
    (code,) = blocks(page, "python")
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == (prints, "")


def test_every_profile_is_listed() -> None:
    page = (REFERENCE / "manifest.md").read_text()
    for name, limits in PROFILES.items():
        memory, scratch = limits.memory >> 30, limits.scratch >> 30
        assert f"| `{name}` | {limits.cpu:g} | {memory} GiB | {scratch} GiB |" in page
