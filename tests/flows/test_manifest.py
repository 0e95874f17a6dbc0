import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.flows import Execution, Manifest, MultimodalPin, ResourceSpec, load_manifest
from mentatlab.flows.manifest import parse_cpu, parse_env, resolve_resources
from mentatlab.protocol.agent import Resources
from mentatlab.protocol.errors import Code, Invalid, ValidationFailed
from mentatlab.protocol.pins import PinType

GI = 1 << 30
OLD = """
id: mentatlab.psyche-sim
version: 0.1.0
image: mentatlab/psyche-sim:local-dev
runtime: python3.12
description: sample
inputs:
  - {name: spec, type: json, metadata: {description: the task}}
  - {name: context, type: json}
outputs:
  - {name: result, type: json}
  - {name: output, type: stream}
longRunning: false
env: ["PYTHONUNBUFFERED=1", TOKEN, {name: URL, value: "http://x"}, {name: NAME}]
resources: {gpu: true}
ui: {title: Psyche, catalog: {tags: [a]}}
"""


def manifest(**fields: Any) -> Manifest:
    return load_manifest({"id": "a.b", "version": "1.0.0", **fields})


def codes(error: pytest.ExceptionInfo[ValidationFailed]) -> list[str]:
    return sorted(p.path for p in error.value.problems)


def test_an_old_manifest_loads_under_its_own_rules(tmp_path: Path) -> None:
    old = load_manifest(OLD)
    (tmp_path / "main.py").touch()
    program = old.program(tmp_path)
    assert old.old
    assert program.outputs_optional
    assert program.command == (sys.executable, str(tmp_path / "main.py"))
    assert program.env == ("TOKEN", "NAME")
    assert program.fixed_env == (("PYTHONUNBUFFERED", "1"), ("URL", "http://x"))
    assert [pin.required for pin in program.inputs] == [False, False]
    assert program.resources.gpu == 1
    assert program.warm is None


@pytest.mark.parametrize(
    "fields",
    [
        {"execution": {}},
        {"command": ["x"]},
        {"cache": "content"},
        {"inputs": [{"name": "a", "type": "image"}]},
        {"inputs": [{"name": "a", "type": "string", "required": True}]},
        {"outputs": [{"name": "a", "type": "stream", "metadata": {"items": "json"}}]},
    ],
)
def test_one_new_field_makes_a_manifest_new(fields: dict[str, Any]) -> None:
    assert not manifest(**fields).old


def test_in_a_new_manifest_pins_called_spec_are_like_others() -> None:
    new = manifest(execution={}, inputs=[{"name": "spec", "type": "json"}])
    assert new.input_pins[0].required


def test_unknown_fields_are_kept_on_a_round_trip() -> None:
    document = {
        "id": "a.b",
        "version": "1.0.0-rc.1+build",
        "later": {"x": [1]},
        "inputs": [{"name": "a", "type": "image", "later": 1, "metadata": {"later": 2, "fps": 1}}],
        "resources": {"later": True, "ephemeralStorage": "1Gi"},
        "execution": {"warm": True, "later": None},
    }
    assert load_manifest(document).document() == document


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValidationFailed) as refused:
        load_manifest(
            {
                "id": "a b",
                "inputs": [{"name": "1", "type": "picture", "metadata": {"width": 0}}],
                "outputs": {"text": "string"},
                "env": ["a-b", {"name": "A", "value": 1}, 3],
                "longRunning": "no",
                "command": [],
                "resources": {"cpu": "many", "memory": "4 bananas", "gpu": -1},
            },
            name="x.yaml",
        )
    assert refused.value.code == Code.MANIFEST_INVALID
    assert codes(refused) == [
        "/command",
        "/env/0",
        "/env/1",
        "/env/2",
        "/id",
        "/inputs/0/metadata/width",
        "/inputs/0/name",
        "/inputs/0/type",
        "/longRunning",
        "/outputs",
        "/resources/cpu",
        "/resources/gpu",
        "/resources/memory",
        "/version",
    ]


def test_a_fault_says_how_to_write_it() -> None:
    with pytest.raises(ValidationFailed) as refused:
        load_manifest({"version": "1.0", "inputs": [{"name": "a", "type": "text"}]})
    told = {p.path: (p.message, p.hint) for p in refused.value.problems}
    assert told["/id"][0] == "'id' is missing"
    assert told["/version"][0] == "'1.0' does not have the form of 'version'"
    assert '"0.1.0"' in told["/version"][1]
    assert "'image'" in told["/inputs/0/type"][0]


def test_text_that_is_no_document() -> None:
    with pytest.raises(Invalid) as refused:
        load_manifest("id: [", name="x.yaml")
    assert refused.value.code == Code.MANIFEST_SYNTAX


@pytest.mark.parametrize("version", ["1", "1.0", "01.0.0", "1.0.0-", "v1.0.0", "1.0.0-01"])
def test_versions_are_semantic(version: str) -> None:
    with pytest.raises(ValidationFailed):
        load_manifest({"id": "a", "version": version})


def test_resources_are_profiles_and_then_what_is_written() -> None:
    assert resolve_resources(ResourceSpec()) == Resources()
    both = ResourceSpec(profiles=["text_processing", "audio_processing", "unknown"])
    assert resolve_resources(both) == Resources(cpu=1, memory=2 * GI, scratch=5 * GI)
    explicit = manifest(
        resources={
            "profiles": ["video_processing"],
            "cpu": "500m",
            "memory": "1Gi",
            "gpu": 2.0,
            "timeout_seconds": 5,
            "max_concurrent": 3,
            "ephemeralStorage": 7,
        }
    )
    assert explicit.limits() == Resources(
        cpu=0.5, memory=GI, gpu=2, scratch=7, timeout_s=5, max_concurrent=3
    )
    assert explicit.with_profile("text_processing").limits().memory == GI


@pytest.mark.parametrize("cpu", [0, -1, True, [1], "1e3", "", "-1", "1 m"])
def test_what_is_no_number_of_cores(cpu: object) -> None:
    with pytest.raises(ValidationFailed):
        manifest(resources={"cpu": cpu})


@pytest.mark.parametrize("size", [True, -1, 1.5, "x", [1]])
def test_what_is_no_size(size: object) -> None:
    with pytest.raises(ValidationFailed):
        manifest(resources={"memory": size})


@given(st.text())
def test_no_text_crashes_the_small_parsers(text: str) -> None:
    for parse in (parse_cpu, parse_env):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017 (it may also parse)


def test_warm_execution() -> None:
    warm = Execution(warm=True, concurrency=2, max_rss="1GiB").to_protocol()
    assert warm is not None
    assert (warm.concurrency, warm.max_rss, warm.idle_ttl_s) == (2, GI, 300)
    assert Execution().to_protocol() is None
    assert manifest(execution={"warm": True, "batch": {"max": 8.0}}).execution is not None


def test_programs(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as refused:
        manifest().program(tmp_path)
    assert refused.value.code == Code.AGENT_START_FAILED
    (tmp_path / "src").mkdir()
    (tmp_path / "src/main.py").touch()
    (tmp_path / "main.py").touch()
    (tmp_path / "run").touch()
    assert manifest().program(tmp_path, interpreter="py").command == (
        "py",
        str(tmp_path / "src/main.py"),
    )
    for command, argv in {
        ("run", "-x"): (str(tmp_path / "run"), "-x"),
        ("node", "a.js"): ("node", "a.js"),
        ("python", "-m", "a"): ("py", "-m", "a"),
    }.items():
        program = manifest(command=list(command), execution={"warm": True}).program(
            tmp_path, interpreter="py"
        )
        assert program.command == argv
        assert program.warm is not None
        assert not program.outputs_optional


def test_a_pin_becomes_one_of_the_protocol() -> None:
    pin = MultimodalPin.model_validate(
        {
            "name": "frames",
            "type": "stream",
            "required": False,
            "enum": [1, 2],
            "metadata": {"items": "image", "maxSize": "1MB", "later": 1, "width": 640.0},
        }
    ).to_pin()
    assert pin.type is PinType.STREAM
    assert pin.item_type is PinType.IMAGE
    assert (pin.enum, pin.metadata.max_size, pin.metadata.width) == ((1, 2), "1MB", 640)


def test_a_pin_judges_its_media_fields() -> None:
    def found(**fields: Any) -> list[str]:
        pin = MultimodalPin.model_validate({"name": "a", **fields})
        return [f"{p.code} {p.path} {p.severity}" for p in pin.validate_multimodal()]

    assert found(type="string") == []
    assert found(type="image") == ["MANIFEST_MISSING_MIME  warning"]
    assert found(type="image", metadata={"mimeType": "image/png,application/pdf"}) == []
    assert found(type="audio", metadata={"mimeType": "video/webm"}) == []
    assert found(type="image", metadata={"mimeType": "*/*"}) == []
    assert found(type="image", metadata={"mimeType": "audio/wav", "maxSize": "big"}) == [
        "MANIFEST_BAD_SIZE /metadata/maxSize error",
        "MANIFEST_BAD_MIME /metadata/mimeType error",
    ]
