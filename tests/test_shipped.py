"""What the repository ships passes its own strict checks: agents' manifests and example flows."""

from pathlib import Path

import pytest

from mentatlab.flows import (
    Manifest,
    ManifestValidator,
    ValidationMode,
    check_flow,
    load_flow,
    load_manifest,
)

ROOT = Path(__file__).parents[1]
MANIFESTS = sorted(ROOT.glob("agents/*/manifest.yaml"))
FLOWS = sorted(ROOT.glob("examples/*.mlab"))


@pytest.fixture(scope="module")
def agents() -> dict[str, Manifest]:
    manifests = [load_manifest(file.read_bytes(), name=str(file)) for file in MANIFESTS]
    return {manifest.id: manifest for manifest in manifests}


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.parent.name)
def test_manifest(file: Path) -> None:
    validator = ManifestValidator(ValidationMode.STRICT).add_multimodal_rules()
    assert validator.validate(file.read_bytes()) == []
    assert (file.parent / "README.md").is_file()
    assert list((file.parent / "tests").glob("test_*.py"))


@pytest.mark.parametrize("file", FLOWS, ids=lambda file: file.stem)
def test_flow(file: Path, agents: dict[str, Manifest]) -> None:
    assert check_flow(load_flow(file.read_bytes(), name=file.name), agents.get) == []
