"""Environment of a rerun: the packages that the audited revision has locked, in a virtual environment."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from mergemoe import environment
from mergemoe.errors import UserError
from mergemoe.workflow.ledger import commands
from mergemoe.workflow.ledger.environments import recorded_environment

LOCK, CONSTRAINT = Path("envs", "cpu.txt"), Path("envs", "cuda.txt")
DESCRIBE = "import json; from mergemoe import environment; print(json.dumps(environment.describe_environment()))"
FIX = (
    f"pip could not install {LOCK} of the revision. It uses your settings (`pip config list`): the index must have "
    "these versions. A CPU build of torch comes from the index in PIP_EXTRA_INDEX_URL. Without --environment the rerun "
    "takes the packages that are installed now"
)


def of_rerun(tree: Path, locked: bool) -> tuple[Path, dict[str, Any]]:
    """Return the Python that computes a temporary clone again, and its environment as the findings have it.

    Args:
        tree: the clone.
        locked: whether the packages of its lock file are installed; else it is this Python.

    Raises:
        UserError: if they cannot be installed.
    """
    if not locked:
        return commands.PYTHON, {"lock": None, **environment.describe_environment()}
    python = install_environment(tree, tree.parent / "environment")
    return python, {"lock": str(LOCK), **describe_python(python)}


def install_environment(tree: Path, folder: Path) -> Path:
    """Install what a tree's lock file lists into a new folder, as `make .venv/run` does; return its Python.

    The project itself is not installed, because Snakemake and its jobs import the code of the folder they run in.

    Raises:
        UserError: if there is no lock file or no such Python, or the installation fails.
    """
    if not (tree / LOCK).is_file():
        raise UserError(f"the revision has no {LOCK}, which lists the packages of a run. Leave out --environment")
    python = folder / "bin" / "python"
    commands.run_program(tree, find_python(tree), "-m", "venv", str(folder))
    constraint = ["--constraint", str(CONSTRAINT)] if (tree / CONSTRAINT).is_file() else []
    print(f"installing {LOCK} of the revision into a temporary environment; this takes minutes", file=sys.stderr)
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    try:
        commands.run_program(tree, *pip, "--requirement", str(LOCK), *constraint)
    except UserError as error:
        raise UserError(f"{error}\n{FIX}") from None
    return python


def find_python(tree: Path) -> str:
    """Return a Python of a minor version that recorded the tree: this one if it can, else one on PATH.

    Raises:
        UserError: if there is none.
    """
    recorded = {place["python"] for one in recorded_environment.read_recorded(tree).values() for place in one["ran_in"]}
    minors = {_minor(version) for version in recorded}
    if not minors or _minor(environment.describe_environment()["python"]) in minors:
        return str(commands.PYTHON)
    names = [f"python{minor}" for minor in sorted(minors)]
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    raise UserError(
        f"the revision was recorded with Python {', '.join(sorted(recorded))}, and PATH has no {' or '.join(names)}. "
        "Install one of them; or leave out --environment, and the rerun takes the Python and the packages of now"
    )


def describe_python(python: Path) -> dict[str, Any]:
    """Return the package versions, Python and platform of an interpreter, as a job's log has them."""
    home = Path(environment.__file__).parents[1]
    return json.loads(commands.run_program(home, str(python), "-c", DESCRIBE, python=python))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
