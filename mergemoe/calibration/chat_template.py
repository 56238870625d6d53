"""Render messages to text by a tokenizer's chat template."""

import datetime
import re
from collections.abc import Callable
from typing import Any

from mergemoe.errors import UserError

Messages = list[dict[str, Any]]
Render = Callable[[Messages], str]

_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")  # as gpt-oss's template has it
_CHANCE = re.compile(r"\|\s*random\b")
TODAY = datetime.datetime(2025, 1, 1)  # for templates that ask the clock: the same text on every day


def renderer(tokenizer: Any) -> Render:
    """Return the function that renders messages by a chat template, without the token that begins a document."""

    def render(messages: Messages) -> str:
        if not tokenizer.chat_template:
            return no_template(messages)
        template = _CLOCK.sub(lambda found: repr(TODAY.strftime(found[2])), tokenizer.get_chat_template())
        if "strftime_now" in template:
            raise UserError(
                "the tokenizer's chat template asks the clock in a way that is not understood here, and the text would "
                "differ from day to day. Write a date into chat_template.jinja in place of strftime_now"
            )
        if _CHANCE.search(template):
            raise UserError(
                "the tokenizer's chat template draws at random (the filter `random`), and the text would differ each "
                "time. Take that out of chat_template.jinja"
            )
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        before, token, after = text.partition(tokenizer.bos_token or "\0")
        return after if token and not before.strip() else text

    return render


def no_template(messages: Messages) -> str:
    """Raise the error for messages without a chat template."""
    raise UserError(
        "rows hold messages, but the tokenizer has no chat template. Name a field that holds text, or add the model's "
        "chat_template.jinja to the checkpoint's folder"
    )
