"""JSON of a record, every value of which is looked at before it is used."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from raysearch.errors import StorageError

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""Of things that there are none or some of; beyond what float64 holds exactly nothing is counted."""

MOST_BITS = 63
"""Of a whole number: those of arrays have as many."""

NUM_NAMED = 3
"""Fields that a message names."""

MOST_SHOWN = 60
"""Letters of a value that a message shows."""


def read_json(form: Any, text: str | bytes, file: str) -> Any:
    """The values of a JSON text that has a form.

    Nothing is converted: a text is no number, a number no truth value, and no key may be missing or unknown.

    Args:
        form: a dataclass, or any other type; says what must be where.
        text: the JSON.
        file: what messages call it.

    Returns:
        The values as `json.loads` gives them.

    Raises:
        StorageError: it is no JSON of this form; names the first fields that are wrong.

    Example:
        >>> read_json(dict[str, int], '{"epoch": "3"}', "x.json")
        Traceback (most recent call last):
            ...
        raysearch.errors.StorageError: x.json is damaged: epoch is '3': input should be a valid integer.
    """
    try:
        values = json.loads(text, parse_int=_integer)
        # In a list, as `_adapter` has the form.
        text = f"[{text}]" if isinstance(text, str) else b"[%b]" % text
        _adapter(form).validate_json(text, strict=True)
        return values
    except ValidationError as error:
        raise StorageError(f"{file} is damaged: {_complaints(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{file} is damaged: {error!r:.200}.") from error


def parsed(text: str | bytes) -> Any:
    """JSON as plain values, for a reader that looks at each of them itself.

    Raises:
        ValueError: it is no JSON, no text, has a number beyond all bounds, or nests too deep.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"it nests too deep or is too large ({type(error).__name__})") from error


def _integer(text: str) -> int:
    value = int(text)
    if value.bit_length() > MOST_BITS:
        raise ValueError(f"a number of {value.bit_length()} bits is in it; none has more than {MOST_BITS}")
    return value


@lru_cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    # In a list, since pydantic takes the settings of a dataclass from nowhere else than itself.
    return TypeAdapter(list[form], config=ConfigDict(extra="forbid"))


def _complaints(error: ValidationError) -> str:
    texts: list[str] = []
    for entry in error.errors(include_url=False)[:NUM_NAMED]:
        message = str(entry["msg"])
        message = message[0].lower() + message[1:]
        where = ".".join(str(part)[:MOST_SHOWN] for part in entry["loc"][1:]) or "it"
        texts.append(f"{where} is {shown(entry['input'])}: {message}")
    num_more = error.error_count() - len(texts)
    if num_more:
        texts.append(f"and {num_more} more")
    return "; ".join(texts)


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    # Only its beginning is written out: a value may be a whole file.
    if isinstance(value, str | bytes):
        value = value[: MOST_SHOWN + 1]
    elif isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
