"""Check a task of section evaluate before the first job: its files, and whether they are code."""

from pathlib import Path

from mergemoe.errors import UserError, shown
from mergemoe.evaluation.task_folder import TaskFile, read_folder
from mergemoe.evaluation.task_keys import check_task_keys
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
    for file in files:
        for key in ("task", "group"):
            if not isinstance(found := file.content.get(key), str | list | None):
                raise UserError(f"evaluate.tasks.{name}: {file.path}: `{key}: {shown(found)}` must be text. Quote it")
    if not any(name in file.names() for file in files):
        raise UserError(
            f"evaluate.tasks.{name}: no *.yaml file in {folder} has `task: {name}`, `group: {name}` or `tag: {name}` "
            "(lm-eval does not look into *.yml)"
        )
    used = _members(name, name, files, ())
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
    for file in used:
        try:
            check_task_keys(file)
        except UserError as error:
            raise UserError(f"evaluate.tasks.{name}: {error}") from None


def _members(task: str, name: str, files: list[TaskFile], above: tuple[str, ...]) -> list[TaskFile]:
    """Return the files of a task, or of what a group or a tag joins: each is defined once, no group joins itself."""
    where = f"evaluate.tasks.{task}: "
    if name in above:
        raise UserError(f"{where}the group {name} joins itself. Correct the list `task` of its file")
    own = [file for file in files if file.names()[:1] == [name]]
    tagged = [file for file in files if name in file.names()[1:]]
    if len(own) > 1:
        raise UserError(
            f"{where}{own[0].path} and {own[1].path} both define {name}, and lm-eval takes the first alone. Rename or "
            "remove one"
        )
    if not own and not tagged:
        raise UserError(f"{where}the group {above[-1]} joins {name}, which no *.yaml file of the folder defines")
    inner = [member for file in own for member in file.members()] if own else [file.names()[0] for file in tagged]
    return [*own, *(file for member in inner for file in _members(task, member, files, (*above, name)))]
