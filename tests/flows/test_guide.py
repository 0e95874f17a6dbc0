"""The flows that the guide shows can run with the agents that are shipped."""

import re
from pathlib import Path

import pytest

from mentatlab.flows import check_flow, compile_plan, load_flow, load_manifest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/branches-gates-and-sub-flows.md").read_text()
SHIPPED = [load_manifest(path.read_text()) for path in ROOT.glob("agents/*/manifest.yaml")]


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.S))
def test_flows_of_the_guide_can_run(text: str) -> None:
    agents = {manifest.id: manifest for manifest in SHIPPED}
    flow = load_flow(text)
    assert check_flow(flow, agents.get) == []
    assert compile_plan(flow, agents.get).outputs
