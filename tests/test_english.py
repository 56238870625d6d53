"""Docstrings, comments and messages are written in plain English: no headless titles, no riddles."""

import ast
import io
import re
import tokenize

from tiny_project import ROOT

FILES = [path for name in ("mergemoe", "stages") for path in sorted((ROOT / name).rglob("*.py"))]
RIDDLES = re.compile(r"\b(says? of itself|rooms? of its own|needs it not|hangs? on|anew|of its own accord)\b")
HEADLESS = re.compile(r"(What|How|Which|Whether|Where|When|Why|Who|That)\b")
RELATIVE = re.compile(r"(Return|Yield|Print|Tell|Say) (what|those|that)\b")


def docstrings(*kinds):
    """Yield (place, docstring) of the nodes of the given kinds in all files."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}:{node.body[0].lineno}", text


def texts():
    """Yield (place, text) of all strings and comments in all files."""
    for path in FILES:
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", " ".join(node.value.split())
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield f"{path.relative_to(ROOT)}:{token.start[0]}", token.string


def test_a_module_s_docstring_begins_with_a_noun_or_a_verb():
    assert {place: text for place, text in docstrings(ast.Module) if HEADLESS.match(text)} == {}


def test_a_function_s_docstring_names_the_thing_that_it_returns():
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    assert {place: text for place, text in docstrings(*kinds) if RELATIVE.match(text)} == {}


def test_no_docstring_comment_or_message_is_a_riddle():
    assert {place: text for place, text in texts() if RIDDLES.search(text)} == {}
