"""Check a task of section evaluate before the first job: its files, and whether they are code."""

from pathlib import Path

from mergemoe.errors import UserError
from mergemoe.evaluation.task_folder import read_folder
from mergemoe.workflow.config.evaluate import Task


def check_task(name: str, task: Task) -> None:
    """Check a task's files.

    Raises:
        UserError: if a file is missing, lies where no provenance lists it, or is code that nobody has trusted.
    """
    for split, path in task.data_files.items():
        if not Path(path).is_file():
            raise UserError(f"evaluate.tasks.{name}.data_files.{split}: {path}: no such file")
    if task.include is None:
        return
    folder = Path(task.include)
    if not folder.is_dir():
        raise UserError(f"evaluate.tasks.{name}.include: {folder} is not a folder")
    try:
        files = read_folder(folder)
    except UserError as error:
        raise UserError(f"evaluate.tasks.{name}.include: {error}") from None
    defining = [file for file in files if name in file.names()]
    if not defining:
        raise UserError(
            f"evaluate.tasks.{name}: no *.yaml file in {folder} has `task: {name}`, `group: {name}` or `tag: {name}` "
            "(lm-eval does not look into *.yml)"
        )
    own = [file.path for file in defining if file.names()[0] == name]  # tags may have several
    if len(own) > 1:
        raise UserError(
            f"evaluate.tasks.{name}: {own[0]} and {own[1]} both define it, and lm-eval takes the first alone. Rename "
            "or remove one"
        )
    listed = {path.resolve() for path in folder.rglob("*") if path.is_file()}  # the files that go into the provenance
    for file in files:
        if file.code and not task.trust_code:
            raise UserError(
                f"evaluate.tasks.{name}: {file.path} names Python code, which lm-eval runs. Read it; if you trust it, "
                "set `trust_code: true`"
            )
        if outside := [path for path in file.read if path.resolve() not in listed]:
            raise UserError(
                f"evaluate.tasks.{name}: {file.path} reads {outside[0]}, which is no file inside {folder}. A score "
                "lists the files of that folder alone. Move or copy the file there"
            )
