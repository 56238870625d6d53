"""The text in a row: a string, a list of paragraphs, or messages, which the model's chat template makes one text of.

Rows of several fields, such as prompt and completion, are these joined.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from mergemoe.calibration.chat_template import Messages, Render
from mergemoe.errors import UserError, in_short, shown

PARAGRAPHS = "\n\n"  # between the strings of a list
_WAY_OUT = (
    "Correct the row, delete it, name another field (`field` in params.yaml), or set `skip_invalid: true`, which "
    "leaves out and counts such rows"
)
_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    str: "text",
    tuple: "a pair",
    dict: "an object",
    bytes: "bytes",
}


class InvalidText(UserError):
    """The row of a text has nothing to take; `skip_invalid` leaves such rows out."""


def text_in(path: str | Path, number: int, row: Mapping[str, Any], field: str, way_out: str) -> str:
    """Return the string in a field of a row; `way_out` ends a message.

    Raises:
        InvalidText: the row has no such field, or it is no text that a tokenizer can take.
    """
    return check_text(f"{path}: row {number}: field {field!r}", _value(path, number, row, field, way_out), way_out)


def value_in(path: str | Path, number: int, row: Mapping[str, Any], fields: Sequence[str]) -> str | Messages:
    """Return the text of the fields of a row together, or the messages of one conversation.

    Raises:
        InvalidText: a field is missing or holds neither, or one holds text and another messages.
    """
    parts = [_part(f"{path}: row {number}: field {field!r}", _value(path, number, row, field)) for field in fields]
    if all(isinstance(part, str) for part in parts):
        return "".join(str(part) for part in parts)
    if not all(isinstance(part, list) for part in parts):
        raise InvalidText(f"{path}: row {number}: {_listed(fields)} hold text and messages. Name fields of one kind")
    return [message for part in parts if isinstance(part, list) for message in part]


def text_of(path: str | Path, number: int, row: Mapping[str, Any], fields: Sequence[str], render: Render) -> str:
    """Return the text of a row's fields.

    Raises:
        InvalidText: as value_in; or the chat template refuses the messages.
        UserError: there are messages and no template.
    """
    value = value_in(path, number, row, fields)
    if isinstance(value, str):
        return value
    try:
        text = render(value)
        if not _holds_a_message(text, value):  # some templates read content as a list of parts
            text = render([_in_parts(message) for message in value])
    except UserError:
        raise
    except TemplateSyntaxError as error:
        raise UserError(
            f"the model's chat template cannot be read ({in_short(error)} in line {error.lineno}), so no row can be "
            "rendered. Correct chat_template.jinja, or the key chat_template of tokenizer_config.json"
        ) from None
    except Exception as error:  # the template's own, of any kind
        raise InvalidText(
            f"{path}: row {number}: the model's chat template refuses its messages ({in_short(error)}). {_WAY_OUT}"
        ) from None
    if not _holds_a_message(text, value):
        raise InvalidText(
            f"{path}: row {number}: what the model's chat template makes of its messages holds none of their content. "
            f"The template skips these roles, or its file is damaged. {_WAY_OUT}"
        )
    return check_text(f"{path}: row {number}: what the chat template makes of it", text)


def _holds_a_message(text: Any, messages: Messages) -> bool:
    """Tell whether a rendered text has the content of one message at least; a template may leave out some."""
    contents = [message["content"].split() for message in messages if isinstance(message.get("content"), str)]
    found = str(text).casefold()  # a template may write it in capitals, or as JSON
    return not any(contents) or any(words[0].casefold() in found for words in contents if words)


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def check_text(where: str, value: Any, way_out: str = _WAY_OUT) -> str:
    """Return a value if it is text; `where` begins a message, and `way_out` ends it.

    Raises:
        InvalidText: it is not, or it holds half a surrogate pair.
    """
    if not isinstance(value, str):
        raise InvalidText(f"{where} is {kind_of(value)}, not text. {way_out}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(
            f"{where} holds {value[error.start]!a} at character {error.start + 1}, which is half a character (a lone "
            f"surrogate). No tokenizer can take it; it is left where text was cut inside a character. {way_out}"
        ) from None
    return value


def without_nulls(value: Any) -> Any:
    """Return a value without the keys of nested objects that are null: a table has each key of any row in every row."""
    if isinstance(value, list):
        return [without_nulls(part) for part in value]
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return value


def kind_of(value: Any) -> str:
    """Return the noun for a value of JSON."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _value(path: str | Path, number: int, row: Mapping[str, Any], field: str, way_out: str = _WAY_OUT) -> Any:
    if field not in row:
        raise InvalidText(f"{path}: row {number} has no field {field!r}. Its fields are {_listed(row)}. {way_out}")
    return row[field]


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"{name[:40]!r}" for name in list(names)[:8]) or "none"


def _part(where: str, value: Any) -> str | Messages:
    if not isinstance(value, list):
        return _no_list(where, check_text(where, value))
    kinds = {kind_of(part) for part in value}
    if kinds == {"text"}:
        return PARAGRAPHS.join(check_text(f"{where}, paragraph {i}", part) for i, part in enumerate(value, 1))
    if kinds == {"an object"}:
        return [_message(f"{where}, message {i}", part) for i, part in enumerate(value, 1)]
    raise InvalidText(
        f"{where} is a list of {', '.join(sorted(kinds)) or 'nothing'}. A list holds paragraphs (text) or messages "
        f"(objects with `role` and `content`). {_WAY_OUT}"
    )


def _no_list(where: str, text: str) -> str:
    """Return a text, unless it is the JSON of messages: some tools write such a list as one string."""
    if text.lstrip()[:2] == "[{" and re.search(r'"(role|from)"\s*:', text[:1000]):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(text), list):
                raise InvalidText(
                    f"{where} is text that holds the JSON of a list of messages. Write the list itself, without quotes "
                    f"around it. {_WAY_OUT}"
                )
    return text


def _message(where: str, value: dict[str, Any]) -> dict[str, Any]:
    calls = bool(value.get("tool_calls"))
    if "role" in value and not isinstance(value["role"], str):
        raise InvalidText(f"{where}: role is {kind_of(value['role'])}, not text. {_WAY_OUT}")
    if not isinstance(value.get("role"), str) or ("content" not in value and not calls):
        raise InvalidText(
            f"{where} has the keys {_listed(value)}, but a message has `role` and `content`. Rename them (ShareGPT's "
            f"`from` is the role, with user for human and assistant for gpt, `value` the content). {_WAY_OUT}"
        )
    content = value.get("content")
    if content is None and calls:
        return {**value, "content": None}
    if isinstance(content, list):
        other = [part for part in content if not isinstance(part, dict) or part.get("type") != "text"]
        if other:
            raise InvalidText(f"{where} has a part that is no text: {shown(other[0])}. {_WAY_OUT}")
        content = "".join(check_text(f"{where}: content", part.get("text")) for part in content)
    return {**value, "content": check_text(f"{where}: content", content)}
