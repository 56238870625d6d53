"""lm-eval's tasks by name: where their definitions are, and how a stock one reads local files in place of the hub.

lm-eval's own index reads some 14,000 task files whenever it is made, which takes many times longer than a small task.
One file is enough for one task: its path is found by its first words, and given to lm-eval as the task.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from mergemoe.errors import UserError

STOCK = Path(lm_eval.__file__).parent / "tasks"
# Tasks that are Python classes with a source of their own: our subclass, and what its scores are to say.
CLASSES = {"squad_completion": "mergemoe.evaluation.squad.Completion"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class LmEvalTask:
    """What lm-eval is asked to run."""

    name: str
    spec: str  # for lm-eval: a name that `manager` knows, or the path of a file
    manager: TaskManager
    note: str | None  # what a reader of the score must know
    local: bool = False  # its data are `data_files`


@contextmanager
def open_task(
    name: str, include: str | None, data_files: Mapping[str, str], fewshot: int | None
) -> Iterator[LmEvalTask]:
    """Yield one task; what is written for it, and what `datasets` makes of local files, is gone afterwards.

    Args:
        name: as lm-eval has it, or as a file in `include` has it.
        include: a folder of task files; lm-eval's own are then left aside.
        data_files: {split: path} of local data for a stock task.
        fewshot: examples in the prompt; None is the task's own number.

    Raises:
        UserError: where the name is not known, takes no examples, or the data lacks a split.
    """
    if include:
        manager = TaskManager(include_path=include, include_defaults=False)
        if name not in manager.all_tasks:
            raise UserError(f"evaluate.tasks.{name}: the name is not known in {include}")
        yield LmEvalTask(name, name, manager, None)
        return
    path = find_stock_file(name)
    if path is not None and fewshot and load_yaml(path, resolve_func=False).get("num_fewshot") == 0:
        raise UserError(
            f"evaluate.tasks.{name}.fewshot is {fewshot}: lm-eval's own task takes no examples, whatever is asked for. "
            "Leave `fewshot` out"
        )
    if data_files:
        if path is None:
            raise UserError(
                f"evaluate.tasks.{name}: lm-eval {lm_eval.__version__} has no single task of this name, and "
                "`data_files` are of one task: name the tasks of a group one by one"
            )
        with tempfile.TemporaryDirectory() as folder:
            text, note = local_task_file(name, path, data_files, fewshot, folder)
            file = Path(folder, f"{name}.yaml")
            file.write_text(text)
            yield LmEvalTask(name, str(file), TaskManager(include_defaults=False), note, local=True)
    elif path is not None:
        yield LmEvalTask(name, str(path), TaskManager(include_defaults=False), None)
    else:
        manager = TaskManager()  # a group, or a tag: its members are found in the index
        if name not in manager.all_tasks:
            raise UserError(f"evaluate.tasks.{name}: the name is not known to lm-eval {lm_eval.__version__}")
        yield LmEvalTask(name, name, manager, None)


def find_stock_file(name: str) -> Path | None:
    """Return the file of lm-eval's own that defines a single task; None where none does."""
    line = re.compile(rf"^[\"']?task[\"']?:[ \t]*[\"']?{re.escape(name)}[\"']?\s*(#.*)?$".encode(), re.MULTILINE)
    word = name.encode()
    for path in sorted(STOCK.rglob("*.yaml")):
        content = path.read_bytes()
        if word in content and line.search(content):
            return path
    return None


def local_task_file(
    name: str, path: Path, data_files: Mapping[str, str], fewshot: int | None, cache: str
) -> tuple[str, str | None]:
    """Return a task file that is the stock one on local data, and what must be said of its scores.

    The split that is scored is the stock task's; where `data_files` lacks it and has one file, that file's.

    Raises:
        UserError: where no file is of the split that is scored, or of the one that examples are taken from.
    """
    files = {split: str(Path(file).resolve()) for split, file in data_files.items()}
    stock: dict[str, Any] = load_yaml(path, resolve_func=False)
    if "class" in stock:
        return _of_class(name, files)
    wanted = stock.get("test_split") or stock["validation_split"]
    splits = {role: split if (split := stock.get(role)) in files else None for role in SPLITS}
    note = None
    if wanted not in files:
        if len(files) > 1:
            raise UserError(
                f"evaluate.tasks.{name}.data_files has {', '.join(files)}: lm-eval's own task is scored on {wanted!r}. "
                "Give that split's file, or one file alone, which is scored in its place"
            )
        found = next(iter(files))
        splits["test_split"] = found
        note = f"on the split {found!r}; lm-eval's own task is scored on {wanted!r}"
    shots = stock.get("fewshot_split") or stock.get("training_split")
    wanted_shots = stock.get("num_fewshot", 0) if fewshot is None else fewshot
    if wanted_shots and shots and shots not in files:
        raise UserError(
            f"evaluate.tasks.{name}: the prompt has {wanted_shots} examples, which come from the split {shots!r}: add "
            "that split's file to `data_files`, or set `fewshot: 0`"
        )
    return yaml.safe_dump(
        {
            "include": str(path),
            "task": name,
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": cache},
            **splits,
        }
    ), note


def _of_class(name: str, files: Mapping[str, str]) -> tuple[str, str]:
    """The same of a task that is a Python class."""
    if name not in CLASSES or set(files) != {"validation"}:
        raise UserError(
            f"evaluate.tasks.{name}.data_files: this task is Python code with a source of its own. Of such tasks local "
            f"data is read for {', '.join(CLASSES)}, with the one split `validation`"
        )
    from mergemoe.evaluation import squad

    text = yaml.safe_dump({"task": name, "dataset_kwargs": {"data_files": dict(files)}})
    return f"{text}class: !function {CLASSES[name]}\n", squad.NOTE
