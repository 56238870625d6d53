"""Find the definition of an lm-eval task by name, and let a stock task read local files instead of the hub.

lm-eval's own index reads about 14,000 task files each time it is built, which takes much longer than a small task. One
file is enough for one task: this module finds it by its line `task: <name>` and gives its path to lm-eval.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from datasets import config
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from mergemoe.errors import UserError
from mergemoe.evaluation.task_folder import read_folder

STOCK = Path(lm_eval.__file__).parent / "tasks"
# {task: our subclass}, for tasks that are Python classes with a data source of their own.
CLASSES = {"squad_completion": "mergemoe.evaluation.squad.Completion"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class LmEvalTask:
    """A task that lm-eval can run."""

    name: str
    spec: str  # for lm-eval: a name that `manager` knows, or the path of a task file
    manager: TaskManager
    note: str | None  # a remark that is printed with the score
    local: str | None = None  # the key of params.yaml that names its data on this machine


@contextmanager
def open_task(
    name: str, include: str | None, data_files: Mapping[str, str], fewshot: int | None
) -> Iterator[LmEvalTask]:
    """Yield one task; its temporary task file and the cache of local files are deleted afterwards.

    Args:
        name: the task's name in lm-eval or in a file of `include`.
        include: a folder of task files, used instead of lm-eval's own.
        data_files: {split: path} of local data for a stock task.
        fewshot: the number of examples in the prompt; None is the task's own number.

    Raises:
        UserError: the name is not known, the task takes no examples, or a split is missing in the data.
    """
    if include:
        manager = TaskManager(include_path=include, include_defaults=False)
        if name not in manager.all_tasks:
            raise UserError(f"evaluate.tasks.{name}: no file in {include} defines this task. Correct the name")
        with _own_cache() if any(file.data_files() for file in read_folder(Path(include))) else nullcontext():
            yield LmEvalTask(name, name, manager, None, local="include")
        return
    path = find_stock_file(name)
    if path is not None and fewshot and load_yaml(path, resolve_func=False).get("num_fewshot") == 0:
        raise UserError(
            f"evaluate.tasks.{name}.fewshot is {fewshot}, but lm-eval's own task never takes examples. Remove `fewshot`"
        )
    if data_files:
        if path is None:
            raise UserError(
                f"evaluate.tasks.{name}: lm-eval {lm_eval.__version__} has no single task of this name, but "
                "`data_files` belong to one task. Name the tasks of a group one by one"
            )
        with tempfile.TemporaryDirectory() as folder:
            text, note = local_task_file(name, path, data_files, fewshot, folder)
            file = Path(folder, f"{name}.yaml")
            file.write_text(text, encoding="utf-8")
            yield LmEvalTask(name, str(file), TaskManager(include_defaults=False), note, local="data_files")
    elif path is not None:
        yield LmEvalTask(name, str(path), TaskManager(include_defaults=False), None)
    else:
        manager = TaskManager()  # for a group or a tag, whose members only the index knows
        if name not in manager.all_tasks:
            raise UserError(f"evaluate.tasks.{name}: lm-eval {lm_eval.__version__} has no such task. Correct the name")
        yield LmEvalTask(name, name, manager, None)


@contextmanager
def _own_cache() -> Iterator[None]:
    """Let `datasets` read the local files: in its cache on disk, only path and time identify one."""
    kept = config.HF_DATASETS_CACHE
    with tempfile.TemporaryDirectory() as folder:
        config.HF_DATASETS_CACHE = folder
        try:
            yield
        finally:
            config.HF_DATASETS_CACHE = kept


def find_stock_file(name: str) -> Path | None:
    """Return lm-eval's own file that defines a single task, or None if there is none."""
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
    """Return the text of a task file that runs the stock task on local data, and a note for its scores.

    The scored split is the stock task's. If `data_files` does not have it and holds one file, that file is scored.

    Raises:
        UserError: no file has the scored split, or the split of the prompt's examples.
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
                f"evaluate.tasks.{name}.data_files has {', '.join(files)}, but lm-eval's own task is scored on "
                f"{wanted!r}. Give the file of that split, or one file only, which is then scored instead"
            )
        found = next(iter(files))
        splits["test_split"] = found
        note = f"on the split {found!r}; lm-eval's own task is scored on {wanted!r}"
    shots = stock.get("fewshot_split") or stock.get("training_split")
    wanted_shots = stock.get("num_fewshot", 0) if fewshot is None else fewshot
    if wanted_shots and shots and shots not in files:
        raise UserError(
            f"evaluate.tasks.{name}: the prompt needs {wanted_shots} examples from the split {shots!r}, which is "
            "missing. Add the file of that split to `data_files`, or set `fewshot: 0`"
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
    """Return the task file and the note for a task that is a Python class."""
    if name not in CLASSES or set(files) != {"validation"}:
        raise UserError(
            f"evaluate.tasks.{name}.data_files: this task is Python code with its own data source. Among such tasks, "
            f"only {', '.join(CLASSES)} can read local data. Give its split `validation`"
        )
    from mergemoe.evaluation import squad

    text = yaml.safe_dump({"task": name, "dataset_kwargs": {"data_files": dict(files)}})
    return f"{text}class: !function {CLASSES[name]}\n", squad.NOTE
