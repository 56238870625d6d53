"""Find what lm-eval would read and run from a folder of task files, without running any of it.

A task file is YAML, may take keys from others by `include`, and names its data in `dataset_kwargs`. lm-eval makes a
function of every tag `!function`, in all the spellings that YAML has for it: what counts is the parser's own view.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mergemoe.errors import UserError, in_short

DEEPEST = 100  # levels of nesting; libyaml itself crashes at some ten thousand
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as lm-eval's
# Those of lm-eval 0.4.13; for any other name, it downloads a script from the hub, or takes a local one, and runs it.
METRICS = """
    acc acc_all acc_bytes acc_mutual_info acc_norm bits_per_byte bleu brier_score bypass byte_perplexity chrf chrf++
    exact_match f1 likelihood mcc perplexity ter word_perplexity
""".split()  # noqa: SIM905
UNFOLLOWED = ("data_dir", "cache_dir", "con")  # settings of `datasets` that lead to files which nobody lists
UNINDEXED = {"__pycache__", ".ipynb_checkpoints"}  # folders that lm-eval's index leaves out
PATTERN = re.compile(r"[*?\[{]|::|://")  # what `datasets` does not take for the name of one local file


class _Loader(LOADER):
    """YAML's own types; what another tag stands for is None."""


_Loader.add_constructor(None, lambda loader, node: None)


@dataclass
class TaskFile:
    """One task file of a folder, with what it takes from others."""

    path: Path
    content: dict[Any, Any] = field(default_factory=dict)  # `include` carried out
    read: list[Path] = field(default_factory=list)  # itself, what it includes, its modules and data
    code: bool = False  # whether lm-eval would run Python because of it

    def names(self) -> list[str]:
        """Return the names under which lm-eval finds it: a task, its tags, or a group."""
        if self.path.suffix != ".yaml" or UNINDEXED & set(self.path.parts):
            return []
        kind = "group" if "group" in self.content and "class" not in self.content else "task"
        tags = self.content.get("tag") or [] if kind == "task" else []
        named = [self.content.get(kind), *(tags if isinstance(tags, list) else [tags])]
        return [name for name in named if isinstance(name, str)]

    def members(self) -> list[str]:
        """Return the names of the tasks and groups that a group of this file joins."""
        listed = self.content.get("task") if "group" in self.content else []
        named = [part.get("task", part.get("group")) if isinstance(part, dict) else part for part in _list(listed)]
        own = [part for part in _list(listed) if isinstance(part, dict) and set(part) - {"task", "group", "alias"}]
        inside = {part.get("task") for part in own if "doc_to_text" in part or "dataset_path" in part}
        return [name for name in named if isinstance(name, str) and name not in inside]

    def data_files(self) -> list[str]:
        """Return the files that hold its data."""
        settings = [mapping.get("dataset_kwargs") for mapping in _mappings(self.content)]
        named = [found.get("data_files") for found in settings if isinstance(found, dict)]
        return [part for part in _parts(named, set()) if isinstance(part, str)]


def read_folder(folder: Path) -> list[TaskFile]:
    """Return the task files of a folder, those that only others include left out.

    Raises:
        UserError: if a file is no YAML, or says what to read in a way that cannot be followed.
    """
    return [_task_file(path) for path in sorted(folder.rglob("*.y*ml")) if path.is_file()]


def _task_file(path: Path) -> TaskFile:
    file = TaskFile(path)
    file.content = _merged(path, file)
    for mapping in _mappings(file.content):
        metrics = mapping.get("metric_list")
        for metric in metrics if isinstance(metrics, list) else []:
            known = isinstance(metric, dict) and metric.get("metric") in METRICS and not metric.get("hf_evaluate")
            file.code = file.code or not known
        prompt, place = mapping.get("use_prompt"), mapping.get("dataset_path")
        if isinstance(prompt, str) and ".yaml" in prompt:
            file.read.append(Path(prompt.partition(":")[0]))
        if isinstance(place, str) and ("/" in place or "." in place) and Path(place).exists():
            raise UserError(
                f"{path}: `dataset_path: {place}` is on this machine, and its files are not listed. Set `dataset_path` "
                "to the kind of the files, such as json, and name them in `dataset_kwargs: {data_files: ...}`"
            )
        for key in UNFOLLOWED:
            if isinstance(settings := mapping.get("dataset_kwargs"), dict) and key in settings:
                raise UserError(f"{path}: files in `dataset_kwargs.{key}` are not listed. Name each in `data_files`")
    for name in file.data_files():
        if PATTERN.search(name):
            raise UserError(f"{path}: `data_files` has {name!r}, which is not the path of one file. Name each file")
        file.read.append(Path(name))
    file.code = file.code or "class" in file.content
    return file


def _merged(path: Path, file: TaskFile) -> dict[Any, Any]:
    """Return the content of a task file as lm-eval merges it with what it includes."""
    path = path.resolve()
    if path in file.read:
        raise UserError(f"{file.path}: {path} is included twice. Remove one `include`")
    file.read.append(path)
    content = _load(path, file)
    if not isinstance(content, dict):
        return {}
    included, merged = content.pop("include", []), {}
    for other in included if isinstance(included, list) else [included]:
        if not isinstance(other, str):
            raise UserError(f"{path}: `include` has something that is not a path. Write the path of a task file")
        merged.update(_merged(path.parent / other, file))
    return merged | content


def _load(path: Path, file: TaskFile) -> Any:
    try:
        content, depth = path.read_bytes() if path.is_file() else None, 0
        if content is None:
            raise UserError(f"{file.path}: `include` names {path}, which is no file. Correct the path")
        for event in yaml.parse(content, Loader=LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{path} nests deeper than {DEEPEST} levels. Is it a task file?")
            tag = getattr(event, "tag", None)
            if tag and tag != "!" and tag not in yaml.SafeLoader.yaml_constructors:
                file.code = True
                module = str(getattr(event, "value", "")).rpartition(".")[0].replace(".", "/")
                local = path.parent / f"{module}.py"
                file.read += [local] if local.is_file() else []
        return _Loader(content).get_single_data()  # as safe_load, but that a tag of no YAML type is None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read as YAML ({in_short(error)}). Correct it, or remove it") from None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _mappings(value: Any) -> list[dict[Any, Any]]:
    return [part for part in _parts(value, set()) if isinstance(part, dict)]


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield a value and all that it holds, each once: YAML's aliases can make a value that holds itself."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    if isinstance(value, dict | list | tuple | set):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part, seen)
