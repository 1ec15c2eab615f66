"""Why a message is refused, in words: which field, what was wanted there, and what was given.

Pure. Owns the wording, and the bounds that hold for fields that we ignore. Never decodes bytes.
"""

import math
import re
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from feature_store.errors import DecodeError, DecodeReason
from feature_store.schema import EventKind

MAX_DEPTH: Final = 8
"""Lists and maps inside each other, fields that we ignore included. Our own fields need two."""
_MAX_ECHO_CHARS: Final = 40


def check_plain(field: object, content: object) -> None:
    """Refuse what is nested too deeply, and what JSON could not say: bytes, msgpack extensions, keys that are
    not text.

    Needed for fields that we ignore, which validation does not look into; of a refused message it is the
    plainer reason.
    """
    if type(field) is not str:
        raise DecodeError(DecodeReason.WRONG_TYPE, f"a field's name is {shown(field)}, not text")
    waiting = [(content, 1)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, str | int | float | None):
            continue
        if depth > MAX_DEPTH:
            raise too_deep(f"field '{_cut(field)}'")
        if type(node) is list:
            waiting += [(child, depth + 1) for child in node]
        elif type(node) is dict:
            if not all(type(name) is str for name in node):
                raise DecodeError(DecodeReason.WRONG_TYPE, f"field '{_cut(field)}': a map key is not text")
            waiting += [(child, depth + 1) for child in node.values()]
        else:
            detail = f"field '{_cut(field)}' holds {shown(node)}; text, numbers, lists and maps are accepted"
            raise DecodeError(DecodeReason.WRONG_TYPE, detail)


def explain(model: type[Struct], fields: dict[str, Any]) -> DecodeError:
    """Name the first bad field, or the entry in it, and say what was wrong."""
    for field in msgspec.structs.fields(model):
        if field.required and field.name not in fields:
            return DecodeError(DecodeReason.MALFORMED, f"field '{field.name}': required, but missing")
        content: Any = fields.get(field.name)
        fault = _fault(field, content) if field.name in fields else None
        if fault is None:
            continue
        if " - at " not in fault:
            return _refusal(field.name, fault, content)
        # Some entry is bad, but msgspec does not tell its key: find the first that is bad on its own.
        is_map = isinstance(content, dict)
        for place, entry in content.items() if is_map else enumerate(content):
            fault = _fault(field, {place: entry} if is_map else [entry])
            if fault is not None:
                inner = re.search(r"\[\.\.\.\]\[(\d+)\]", fault)
                given = place if "`key`" in fault else entry[int(inner[1])] if inner else entry
                return _refusal(f"{field.name}.{_cut(str(place))}", fault, given)
    raise AssertionError("a refused event has a bad field")


def _fault(field: FieldInfo, content: object) -> str | None:
    try:
        msgspec.convert(content, field.type)
    except msgspec.ValidationError as error:
        return str(error)
    return None


_WORDS: Final = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "array": "a list",
    "object": "a map",
}


def _refusal(place: str, fault: str, given: object) -> DecodeError:
    """Turn "Expected `float | str`, got `bool` - at `$.x`" into words, with the value that was given."""
    is_bound = re.search(" [<>]= ", fault)
    reason = DecodeReason.OUT_OF_BOUNDS if is_bound else DecodeReason.WRONG_TYPE
    if isinstance(given, float) and not math.isfinite(given):
        reason = DecodeReason.NOT_FINITE
    said = re.sub("`float` [<>]= .*", "a finite number", re.split(", got | - at ", fault)[0])
    said = re.sub(r"\w+", lambda word: _WORDS.get(word[0], word[0]), said)
    said = said.replace("`", "").replace(" | ", " or ")
    got = f"{len(given)} entries" if is_bound and isinstance(given, list | dict) else shown(given)
    return DecodeError(reason, f"field '{place}': {said[0].lower()}{said[1:]}, got {got}")


def key_mismatch(kind: EventKind, key_field: str, key: bytes | None, owner: str) -> DecodeError:
    """Say that a record's key is not the ID that it must be keyed by."""
    found = "there is no key" if key is None else f"the key is {shown(key)}"
    detail = f"{found}, but {key_field} is {shown(owner)}: {kind.value} must be keyed by it"
    return DecodeError(DecodeReason.KEY_MISMATCH, detail)


def too_deep(what: str) -> DecodeError:
    """Say that lists and maps stand too deep inside each other."""
    return DecodeError(DecodeReason.TOO_DEEP, f"{what} is nested more than {MAX_DEPTH} levels deep")


def reason(error: ValueError) -> str:
    """Return a library's words, not too many of them."""
    return str(error)[:100] or type(error).__name__


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_ECHO_CHARS else text[:_MAX_ECHO_CHARS] + "…"


def shown(given: object) -> str:
    """Describe a value in few characters, whatever its size: repr of deep nesting would itself overflow."""
    if isinstance(given, str | bytes):
        return repr(given[:_MAX_ECHO_CHARS]) + ("…" if len(given) > _MAX_ECHO_CHARS else "")
    if given is None or isinstance(given, bool):
        return "null" if given is None else str(given).lower()
    if isinstance(given, float):
        return repr(given)
    if isinstance(given, int):
        return str(given) if given.bit_length() <= 64 else "an integer of more than 64 bits"
    name = type(given).__name__
    return {"list": "a list", "dict": "a map"}.get(name, f"a value of type {name}")
