from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from mentatlab.flows import ManifestValidator, ValidationMode, load_manifest
from mentatlab.protocol.errors import Code, Invalid, Problem, ValidationFailed

FAULTY: dict[str, Any] = {
    "id": "a.b",
    "version": "one",
    "inputs": [
        {"name": "a", "type": "image"},
        {"name": "a", "type": "string", "metadata": {"maxSize": "much"}},
        "not a pin",
    ],
    "outputs": [
        {"name": "o", "type": "video", "metadata": {"mimeType": "audio/wav"}},
        {"name": "p", "type": "image"},
    ],
    "longRunning": True,
    "execution": {"warm": True},
    "env": ["A=b", "C", {}],
    "resources": {"profiles": ["gigantic", 3]},
}


def found(problems: list[Problem]) -> set[tuple[str, str, str]]:
    return {(p.code, p.path, p.severity) for p in problems}


def test_strict_tells_everything_at_once() -> None:
    validator = ManifestValidator(ValidationMode.STRICT).add_multimodal_rules()
    assert found(validator.validate(FAULTY)) == {
        ("MANIFEST_INVALID", "/version", "error"),
        ("MANIFEST_INVALID", "/inputs/2", "error"),
        ("MANIFEST_INVALID", "/env/2", "error"),
        ("MANIFEST_INVALID", "/resources/profiles/1", "error"),
        ("MANIFEST_DUPLICATE_PIN", "/inputs/1/name", "error"),
        ("MANIFEST_BAD_SIZE", "/inputs/1/metadata/maxSize", "error"),
        ("MANIFEST_WARM_SERVICE", "/execution/warm", "error"),
        ("MANIFEST_OLD_ENV", "/env/0", "error"),
        ("MANIFEST_UNKNOWN_PROFILE", "/resources/profiles/0", "warning"),
        ("MANIFEST_MISSING_MIME", "/inputs/0", "warning"),
        ("MANIFEST_BAD_MIME", "/outputs/0/metadata/mimeType", "error"),
    }


def test_lenient_refuses_only_what_cannot_be_loaded() -> None:
    problems = ManifestValidator(ValidationMode.LENIENT).validate(FAULTY)
    assert {p.code for p in problems if p.severity == "error"} == {Code.MANIFEST_INVALID}
    assert Code.MANIFEST_WARM_SERVICE in {p.code for p in problems if p.severity == "warning"}


def test_off_reports_nothing_but_loads_only_what_loads() -> None:
    validator = ManifestValidator(ValidationMode.OFF)
    assert validator.validate(FAULTY) == []
    with pytest.raises(ValidationFailed):
        validator.load(FAULTY)


def test_values_in_an_old_manifest_are_a_warning() -> None:
    (problem,) = ManifestValidator().validate("{id: a, version: 0.1.0, env: [A=b]}")
    assert (problem.code, problem.severity) == (Code.MANIFEST_OLD_ENV, "warning")
    assert ManifestValidator().load("{id: a, version: 0.1.0, env: [A=b]}").id == "a"


RESERVED = {"id": "a", "version": "0.1.0", "env": ["API_KEY", {"name": "S3_SECRET_KEY"}]}


@pytest.mark.parametrize("mode", ValidationMode)
def test_settings_of_the_server_cannot_be_asked_for_in_any_mode(mode: ValidationMode) -> None:
    for load in (ManifestValidator(mode).load, load_manifest):
        with pytest.raises(ValidationFailed) as refused:
            load(RESERVED)
        (problem,) = refused.value.problems
        assert (problem.code, problem.path) == (Code.MANIFEST_RESERVED_ENV, "/env/1")
        assert problem.hint


def test_what_stands_in_a_manifest_is_no_secret_of_the_server() -> None:
    own = {**RESERVED, "env": ["S3_BUCKET=films", "MENTATLAB_MODEL_DIR", "MENTAT", "s3_key"]}
    assert load_manifest(own).env_entries()[0].value == "films"


def test_loading_raises_with_every_error_and_no_warning() -> None:
    with pytest.raises(ValidationFailed) as refused:
        ManifestValidator().add_multimodal_rules().load(FAULTY)
    assert len(refused.value.problems) == 9
    assert "a.b is not valid" in str(refused.value)


def test_text_and_models_are_validated_too() -> None:
    validator = ManifestValidator()
    assert validator.validate(load_manifest({"id": "a", "version": "1.0.0"})) == []
    with pytest.raises(Invalid) as refused:
        validator.validate(b"[")
    assert refused.value.code == Code.MANIFEST_SYNTAX


def test_a_rule_of_ones_own_has_the_same_form() -> None:
    def needs_author(document: Mapping[str, Any]) -> Iterator[Problem]:
        if "author" not in document:
            yield Problem(Code.MANIFEST_INVALID, "/author", "who wrote it?")

    validator = ManifestValidator().add_rule(needs_author).add_rule(needs_author)
    assert [p.path for p in validator.validate({"id": "a", "version": "1.0.0"})] == ["/author"]
