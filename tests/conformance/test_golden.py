"""The golden files hold our own code to the contracts, byte for byte where bytes are promised."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from mentatlab.flows import ManifestValidator, load_flow, load_manifest
from mentatlab.protocol.errors import Invalid, MentatError, ValidationFailed
from mentatlab.protocol.media import is_reference, ref_id_of
from mentatlab.protocol.records import StreamChunk, draft_of, parse_message
from mentatlab.protocol.stdio import Lines, parse_event
from mentatlab.protocol.tokens import Claims, mint, verify

GOLDEN = Path(__file__).parents[2] / "conformance"


def files(pattern: str) -> list[Any]:
    found = sorted(GOLDEN.glob(pattern))
    assert found, pattern
    return [pytest.param(path, id=path.stem) for path in found]


def golden(path: str) -> Any:
    return json.loads((GOLDEN / path).read_text())


def expected(path: Path) -> str:
    return path.read_text().splitlines()[0].removeprefix("# expect: ")


@pytest.mark.parametrize("path", files("manifests/valid/*"))
def test_valid_manifests_load_and_come_back(path: Path) -> None:
    manifest = load_manifest(path.read_bytes(), name=path.name)
    validator = ManifestValidator().add_multimodal_rules()
    assert [p for p in validator.validate(manifest) if p.severity == "error"] == []
    assert load_manifest(manifest.document()) == manifest


@pytest.mark.parametrize("path", files("manifests/invalid/*"))
def test_invalid_manifests_are_refused_for_their_fault_alone(path: Path) -> None:
    assert [p.path for p in ManifestValidator().validate(path.read_bytes())] == [expected(path)]


@pytest.mark.parametrize("path", files("manifests/refused/*"))
def test_manifests_that_break_a_rule(path: Path) -> None:
    validator = ManifestValidator().add_multimodal_rules()
    found = [f"{p.code} {p.path}" for p in validator.validate(path.read_bytes())]
    assert found == [expected(path)]
    with pytest.raises(ValidationFailed):
        validator.load(path.read_bytes())


@pytest.mark.parametrize("path", files("flows/valid/*"))
def test_valid_flows_load_and_come_back(path: Path) -> None:
    flow = load_flow(path.read_bytes(), name=path.name)
    assert load_flow(flow.document()) == flow


@pytest.mark.parametrize("path", files("flows/invalid/*"))
def test_invalid_flows_are_refused_for_their_fault_alone(path: Path) -> None:
    with pytest.raises(ValidationFailed) as refused:
        load_flow(path.read_bytes(), name=path.name)
    assert [p.path for p in refused.value.problems] == [expected(path)]


def test_old_files_keep_everything_that_they_say() -> None:
    path = GOLDEN / "flows/valid/old-hello.mlab"
    assert load_flow(path.read_bytes()).document() == json.loads(path.read_text())


def normal_form(line: bytes) -> dict[str, Any] | None:
    event = parse_event(line)
    if event is None:
        return None
    form = {"event": type(event).__name__.lower(), **msgspec.to_builtins(event)}
    if str(form.get("message")).startswith("ignored a malformed"):
        form["message"] = form["message"].split(":")[0]  # the rest is for people
    return form


@pytest.mark.parametrize("path", files("agent-events/*.ndjson"))
def test_what_agents_print(path: Path) -> None:
    lines = Lines()
    printed = [*lines.feed(path.read_bytes()), *lines.end()]
    wanted = json.loads(path.with_suffix(".expected.json").read_text())
    assert [normal_form(line) for line in printed] == wanted


@pytest.mark.parametrize("record", golden("records/records.json"))
def test_records(record: dict[str, Any]) -> None:
    assert msgspec.convert(record, StreamChunk).to_dict() == record


@pytest.mark.parametrize("case", golden("records/published.json"))
def test_what_publishers_send(case: dict[str, Any]) -> None:
    if case["draft"] is None:
        with pytest.raises(Invalid):
            draft_of(parse_message(json.dumps(case["message"])))
    else:
        said = draft_of(parse_message(json.dumps(case["message"])))
        assert msgspec.to_builtins(structs.replace(said, payload=said.values)) == case["draft"]


def test_forms_of_a_reference() -> None:
    forms = golden("references/forms.json")
    assert {ref_id_of(form) for form in forms["accepted"]} == {forms["id"]}
    for form in forms["refused"]:
        assert not is_reference(form)
        with pytest.raises(MentatError):
            ref_id_of(form)


@pytest.mark.parametrize("case", golden("tokens/tokens.json"))
def test_tokens_are_the_same_bytes(case: dict[str, Any]) -> None:
    claims, secret = msgspec.convert(case["claims"], Claims), bytes.fromhex(case["secret_hex"])
    assert mint(claims, secret) == case["token"]
    assert verify(case["token"], secret, now=claims.expires - 1) == claims
