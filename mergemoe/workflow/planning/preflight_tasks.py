"""Check a task of section evaluate before the first job: its files, and whether they are code."""

import re
from pathlib import Path

from mergemoe.errors import UserError
from mergemoe.workflow.config.evaluate import Task

CODE = re.compile(r"!function|^class *:", re.MULTILINE)  # what lm-eval imports and runs from a task file's folder


def check_task(name: str, task: Task) -> None:
    """Check a task's files.

    Raises:
        UserError: if a file is missing, or task files name code that nobody has trusted.
    """
    for split, path in task.data_files.items():
        if not Path(path).is_file():
            raise UserError(f"evaluate.tasks.{name}.data_files.{split}: {path}: no such file")
    if task.include is None:
        return
    folder = Path(task.include)
    if not folder.is_dir():
        raise UserError(f"evaluate.tasks.{name}.include: {folder} is not a folder")
    texts = {path: path.read_text(errors="replace") for path in sorted(folder.rglob("*.y*ml")) if path.is_file()}
    line = re.compile(rf"^(task|group): *[\"']?{re.escape(name)}[\"']? *$", re.MULTILINE)
    if not any(line.search(text) for text in texts.values()):
        raise UserError(f"evaluate.tasks.{name}: no *.yaml file in {folder} has `task: {name}` or `group: {name}`")
    code = [path for path, text in texts.items() if CODE.search(text)]
    if code and not task.trust_code:
        raise UserError(
            f"evaluate.tasks.{name}: {code[0]} names Python code, which lm-eval runs. Read it; if you trust it, set "
            "`trust_code: true`"
        )
