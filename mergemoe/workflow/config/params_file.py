"""Read params.yaml as Snakemake does, as JSON or else as plain YAML: no key twice, no code."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mergemoe.errors import UserError, one_line

MERGE = "tag:yaml.org,2002:merge"
TEMPLATES = "__use_yte__"  # with this key, Snakemake runs Python that stands in the file
LONGEST = 1_000_000  # bytes; PyYAML takes 10 s for so many


class _Loader(yaml.SafeLoader):
    """Python's types alone, and a mapping names each key once."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set[Any]()
    for key, _ in node.value:
        if key.tag == MERGE:  # `<<: *base` may be followed by keys of its own
            continue
        name = loader.construct_object(key, deep=True)
        if not isinstance(name, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(problem="a key must be a name", problem_mark=key.start_mark)
        if name in seen:
            raise yaml.constructor.ConstructorError(problem=f"{name!r} is there twice", problem_mark=key.start_mark)
        seen.add(name)
    return loader.construct_mapping(node, deep=True)


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    number = loader.construct_yaml_int(node)
    if number.bit_length() > 64:  # Python refuses to print a number that is much longer
        raise yaml.constructor.ConstructorError(problem="a number is too large", problem_mark=node.start_mark)
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_file(path: str | Path) -> dict[str, Any]:
    """Return the content of a params.yaml.

    Raises:
        UserError: if it is missing, neither JSON nor YAML, names a key twice, or has Snakemake's templates.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Run this in the folder of a params.yaml, or name one with --params")
    if (size := path.stat().st_size) > LONGEST:
        raise UserError(f"{path} has {size:,} bytes; at most {LONGEST:,} are read. Is it the file that you mean?")
    try:
        content = _content(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = one_line(" ".join(str(error).split()))
        raise UserError(f"{path} cannot be read as YAML: {said}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections. README.md shows a params.yaml")
    if TEMPLATES in content:
        raise UserError(
            f"{path} has {TEMPLATES}, with which Snakemake runs code that the file holds (that of a file of "
            "--configfile has run: Snakemake reads it before this workflow). Write the values themselves"
        )
    return content


def _content(text: str) -> Any:
    """Return the content of a text; a number such as 1e-3 is one in JSON, and a word in YAML."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except ValueError:
        return _Loader(text).get_single_data()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise yaml.constructor.ConstructorError(problem=f"{twice!r} is there twice")
    return found


def check_files(own: str | Path, given: Iterable[str | Path]) -> None:
    """Check the files of --configfile, which Snakemake has read, or else the workflow's params.yaml, if it is there.

    Raises:
        UserError: as read_file, if there are several files, or if one is a pipe, which has nothing left to check.
    """
    if not (given := list(given)) and Path(own).is_file():
        read_file(own)
    if len(given) > 1:
        raise UserError(
            f"--configfile names {len(given)} files, whose choices Snakemake would mix. Name one: it takes the place "
            "of params.yaml, as with `mergemoe plan --params FILE`"
        )
    for path in given:
        if not Path(path).is_file():
            raise UserError(f"--configfile {path} is a pipe, which is read only once. Write its content to a file")
        read_file(path)
