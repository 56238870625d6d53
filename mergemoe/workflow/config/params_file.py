"""Read params.yaml as plain YAML: no key twice, no code."""

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
        UserError: if it is missing, no YAML, names a key twice, or has Snakemake's templates.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Run this in the folder of a params.yaml, or name one with --params")
    if (size := path.stat().st_size) > LONGEST:
        raise UserError(f"{path} has {size:,} bytes; at most {LONGEST:,} are read. Is it the file that you mean?")
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = one_line(" ".join(str(error).split()))
        raise UserError(f"{path} cannot be read as YAML: {said}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no sections. README.md shows a params.yaml")
    if TEMPLATES in content:
        raise UserError(
            f"{path} has {TEMPLATES}, with which Snakemake runs code that the file holds. Write the values themselves"
        )
    return content


def check_files(paths: Iterable[str | Path]) -> None:
    """Check those of the files that are there, before Snakemake reads them."""
    for path in paths:
        if Path(path).is_file():
            read_file(path)
