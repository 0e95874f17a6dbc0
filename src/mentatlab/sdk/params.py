"""An agent's settings as one typed value, read from what `process` is given."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from mentatlab.protocol.errors import Code, Invalid

T = TypeVar("T", bound=msgspec.Struct)


def read_params(inputs: Mapping[str, Any], params: type[T]) -> T:
    """The fields of `params` out of `inputs`; other keys are left alone, a null counts as absent.

    `Invalid(BAD_PARAM)` names the field and what it must be.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    try:
        return msgspec.convert(given, params, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(
            Code.BAD_PARAM,
            str(error),
            hint=f"this agent's params are {', '.join(params.__struct_fields__)}",
        ) from error
