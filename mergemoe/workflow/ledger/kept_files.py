"""The files that git keeps for the ledger, each with its shape: one reader, one error that says how to get it back."""

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, RootModel, StringConstraints
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mergemoe.artifacts import reading
from mergemoe.errors import UserError, in_short


class Hashed(BaseModel):
    """A path in dvc.lock."""

    path: str
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}(\.dir)?$")]


def _inside(path: str) -> str:
    """Refuse an output that is not inside the project: restore writes and deletes outputs."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] in {"/", ".git", ".dvc"} or ".." in parts:
        raise ValueError(f"{path!r} is not the path of an output inside the project")
    return path


class Output(Hashed):
    """A path that a stage wrote."""

    path: Annotated[str, AfterValidator(_inside)]


class LockedStage(BaseModel):
    """What a stage read and wrote when it was recorded."""

    deps: list[Hashed] = []
    outs: list[Output] = []


class Lock(BaseModel):
    """dvc.lock."""

    stages: dict[str, LockedStage]


class DeclaredStage(BaseModel):
    """A stage of dvc.yaml, of ours or of the user's."""

    cmd: str | list[str] = ""
    outs: list[str | dict[str, dict[str, Any] | None]] = []


class Declared(BaseModel):
    """dvc.yaml."""

    stages: dict[str, DeclaredStage]


class Place(BaseModel):
    """Where jobs ran."""

    model_config = ConfigDict(extra="allow")
    processor: str | None
    python: str
    system: str
    packages: dict[str, str | None]


class RecordedStage(BaseModel):
    """What is kept of a stage's jobs."""

    jobs: int
    seconds: float
    peak_mb: float
    ran_in: list[Place]


class Recorded(BaseModel):
    """envs/recorded.json."""

    stages: dict[str, RecordedStage]


class RanIn(Place):
    """What the log of a job says at its end."""

    seconds: float
    peak_mb: float | None
    node: str | None
    devices: str | None


class MetricsOfModel(BaseModel):
    """A model's numbers."""

    full: dict[str, float]
    runs: dict[str, dict[str, float]]


class Metrics(RootModel[dict[str, MetricsOfModel]]):
    """results/metrics.json."""


class Summaries(BaseModel):
    """envs/summaries.json."""

    results: dict[str, dict[str, dict[str, Any]]]


def read_kept(root: Path, name: str, shape: type[BaseModel], otherwise: str = "") -> dict[str, Any]:
    """Return the content of a YAML or JSON file that git has, after a check of its shape.

    Args:
        root: the project's folder.
        name: the file's path in it.
        shape: what it must hold.
        otherwise: another way out than git's.

    Raises:
        UserError: if it is missing, cannot be read, or has another shape.
    """
    path = root / name
    fix = f"`git checkout {name}` brings it back{otherwise}"
    if not path.exists():
        raise UserError(f"{path} is missing. {fix}")
    reading.refuse_no_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({in_short(error)}). {fix}") from None
    return parse_kept(text, str(path), shape, fix)


def parse_kept(text: str, name: str, shape: type[BaseModel], fix: str) -> dict[str, Any]:
    """Return the content of a text, after a check of its shape; it is YAML if the name ends so, or in `.lock`.

    Raises:
        UserError: if it cannot be read, or has another shape.
    """
    is_yaml = Path(name).suffix in {".yaml", ".lock"}
    try:
        content = YAML(typ="safe", pure=True).load(text) if is_yaml else json.loads(text)
        shape.model_validate(content)
    except (ValueError, RecursionError, YAMLError) as error:
        raise UserError(f"{name} cannot be read ({in_short(error)}). It was cut or edited. {fix}") from None
    return content
