"""An answer that should be JSON of a schema."""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import OutputInvalid

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


def parse_json(text: str, schema: str, step: str, finish: str = "", limit: int = 0) -> Any:
    """The JSON value in `text`, validated again; raises OutputInvalid, which keeps the text.

    `finish` "length" means that it was cut off at `limit` tokens.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        cure = (
            f"it was cut off at max_tokens={limit}; allow more"
            if finish == "length"
            else f"it is not JSON: {error}"
        )
        raise OutputInvalid(f"the answer does not fit the output: {cure}", step, text) from None
    problems = _validator(schema).iter_errors(value)  # pyright: ignore[reportUnknownMemberType]
    for problem in problems:
        where = "/".join(str(part) for part in problem.absolute_path) or "the answer"
        message = f"the answer does not fit the output: {where}: {problem.message[:200]}"
        raise OutputInvalid(message, step, text)
    return value


@lru_cache(maxsize=256)
def _validator(schema: str) -> "Validator":
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def _refuse(constant: str) -> None:
    """NaN and Infinity are no JSON, and the journal could not give them back."""
    raise ValueError(f"{constant} is not a number")
