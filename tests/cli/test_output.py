import json

import click
import pytest
from click.testing import CliRunner

from mentatlab.cli.output import MentatGroup, emit, error_text, json_option, table, translate
from mentatlab.cli.progress import describe_event, text_of
from mentatlab.cli.root import COMMANDS, cli
from mentatlab.protocol.errors import Code, Invalid, Problem, ValidationFailed


@click.group(cls=MentatGroup)
def group() -> None:
    pass


@group.command()
@json_option
def works() -> None:
    emit({"a": 1}, lambda: "a is 1")


@group.command()
@json_option
def fails() -> None:
    problem = Problem(Code.CYCLE, "/graph", "round and round", hint="cut")
    raise ExceptionGroup("tasks", [ValidationFailed(Code.FLOW_INVALID, "no", [problem])])


@group.command()
def lacks() -> None:
    raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")


@group.command()
def breaks() -> None:
    raise ZeroDivisionError


def test_text_and_json():
    assert CliRunner().invoke(group, ["works"]).stdout == "a is 1\n"
    assert json.loads(CliRunner().invoke(group, ["works", "--json"]).stdout) == {"a": 1}


def test_errors_as_text_and_json():
    text = CliRunner().invoke(group, ["fails"])
    assert (text.exit_code, text.stdout) == (1, "")
    assert text.stderr == (
        "error: FLOW_INVALID: no\n  /graph: CYCLE: round and round\n    hint: cut\n"
    )
    error = json.loads(CliRunner().invoke(group, ["fails", "--json"]).stderr)["error"]
    assert error["problems"][0]["code"] == "CYCLE"


def test_a_missing_extra_is_told():
    answer = CliRunner().invoke(group, ["lacks"])
    assert answer.exit_code == 1
    assert "MISSING_EXTRA" in answer.stderr
    assert "hint: pip install 'mentatlab[server]'" in answer.stderr


def test_bugs_are_not_hidden():
    assert isinstance(CliRunner().invoke(group, ["breaks"]).exception, ZeroDivisionError)
    assert translate(ModuleNotFoundError("x", name="mentatlab.nothing")) is None


def test_a_hint_of_its_own():
    assert error_text(Invalid(Code.BAD_SETTING, "x", hint="y")).endswith("\nhint: y")


def test_table():
    assert table(("A", "LONG"), [("aaa", 1), ("b", 22)]) == "A    LONG\naaa  1\nb    22"
    assert table(("A",), []) == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str):
    answer = CliRunner().invoke(cli, [name, "--help"])
    assert answer.exit_code == 0, answer.output
    assert "Usage:" in answer.stdout


def test_every_leaf_has_json_or_prints_bytes():
    def leaves(name: str, command: click.Command):
        if isinstance(command, click.Group):
            for inner, sub in command.commands.items():
                yield from leaves(f"{name} {inner}", sub)
        else:
            yield name, command

    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for path, leaf in leaves(name, command):
            options = {option for p in leaf.params for option in p.opts}
            assert "--json" in options or path in ("storage get", "openapi"), path


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"type": "run_started"}, "run started"),
        ({"type": "node_succeeded", "node_id": "n", "item": 3}, "n[3] done"),
        ({"type": "run_created"}, ""),
        ({"type": "gate_closed", "node_id": "g", "payload": {"approved": True}}, "g approved"),
        ({"type": "gate_closed", "node_id": "g", "payload": {"approved": False}}, "g rejected"),
        ({"type": "run_finished", "payload": {"state": "partial"}}, "run partial"),
        (
            {
                "type": "node_failed",
                "node_id": "n",
                "payload": {"error": {"code": "C", "message": "m", "hint": "h"}},
            },
            "n failed: C: m\n  hint: h",
        ),
    ],
)
def test_events_in_words(event: dict[str, object], line: str):
    assert click.unstyle(describe_event(event)) == line


@pytest.mark.parametrize(
    ("data", "text"),
    [("a", "a"), ({"text": " b"}, " b"), ({"delta": "c"}, "c"), ({"x": 1}, ""), (5, "")],
)
def test_text_of(data: object, text: str):
    assert text_of(data) == text
