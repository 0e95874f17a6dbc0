"""The streams' AsyncAPI document as validators."""

from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT: Any = yaml.safe_load(
    (Path(__file__).parents[2] / "schemas/streams.asyncapi.yaml").read_text()
)
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
_REGISTRY: Registry[Any] = Registry().with_resource(
    "urn:streams", Resource(contents=DOCUMENT, specification=DRAFT202012)
)


def of_message(name: str) -> Draft202012Validator:
    """Of the payload of a message of `components`."""
    schema = {"$ref": f"urn:streams#/components/messages/{name}/payload"}
    return Draft202012Validator(schema, registry=_REGISTRY)
