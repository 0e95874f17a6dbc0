"""What gives an agent that runs alone its stream inputs: a small agent in front of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mentatlab.cli.execute import resolve_inputs
from mentatlab.cli.inputs import read_value
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.pins import BY_REFERENCE, Pin, PinType
from mentatlab.sdk.client import AsyncClient

ID = "mentatlab.feed"
MANIFEST = f"""\
id: {ID}
version: 1.0.0
command: [python, main.py]
inputs: [{{name: items, type: json}}]
outputs: [{{name: items, type: stream}}]
"""
MAIN = """\
import json, sys

for item in json.load(sys.stdin)["spec"]["items"]:
    print(json.dumps({"type": "chunk", "pin": "items", **item}), flush=True)
print(json.dumps({"type": "result", "outputs": {}}))
"""


def write_feeder(home: Path) -> None:
    folder = home / "agents" / "feed"
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").write_text(MANIFEST)
    (folder / "main.py").write_text(MAIN)


async def feed(
    client: AsyncClient, flow: dict[str, Any], pins: Sequence[Pin], given: Mapping[str, str]
) -> None:
    """Put a feeder before every stream pin that is given: a JSON array, of media an array of
    paths."""
    for pin in pins:
        if pin.name in given:
            items = await _items(client, pin, given[pin.name])
            node = {"id": f"feed-{pin.name}", "type": ID, "params": {"items": items}}
            flow["graph"]["nodes"].append(node)
            edge = {"from": f"feed-{pin.name}.items", "to": f"agent.{pin.name}"}
            flow["graph"]["edges"].append(edge)


async def _items(client: AsyncClient, pin: Pin, text: str) -> list[dict[str, Any]]:
    value = read_value(pin.name, text, PinType.JSON)
    if not isinstance(value, list):
        raise Invalid(
            Code.INVALID_REQUEST,
            f"{pin.name} is a stream: its value is a JSON array, one element an item",
            hint=f"e.g. --input '{pin.name}=[1, 2]', or --input {pin.name}=@items.json",
        )
    found = cast("list[Any]", value)
    if pin.item_type not in BY_REFERENCE:
        return [{"data": item} for item in found]
    names = [f"{number}={item}" for number, item in enumerate(found)]
    types = {str(number): pin.item_type for number in range(len(found))}
    return [{"ref": ref} for ref in (await resolve_inputs(client, names, types)).values()]
