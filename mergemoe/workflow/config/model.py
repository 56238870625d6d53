"""Section model of params.yaml: a checkpoint, or the average of several."""

from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.hub import hub_cache
from mergemoe.models.averaging import averages
from mergemoe.workflow.config.base import Section
from mergemoe.workflow.config.names import LocalPath


class Average(Section):
    """The average of checkpoints of one training run (models/averaging/averages.py)."""

    paths: list[LocalPath] = Field(min_length=2, description="folders of the checkpoints, the oldest first")
    by: averages.By = Field(default="sma", description="sma: equal weights; wma: 1, 2, 3, ...; ema: by `alpha`")
    alpha: float = Field(default=0.2, gt=0, le=1, description="of ema: the weight of each next checkpoint")

    @model_validator(mode="after")
    def _apart(self) -> "Average":
        if twice := [path for i, path in enumerate(self.paths) if path in self.paths[:i]]:
            raise ValueError(f"`paths` names {twice[0]} twice. Give each checkpoint once")
        return self


class Model(Section):
    """A checkpoint, or the average of several, whose configuration and tokenizer are those of the last."""

    path: LocalPath = Field(
        default="", description="folder with config.json, safetensors and a tokenizer, or, with `revision`, a hub id"
    )
    revision: str | None = Field(default=None, description="full commit hash of the hub model; `mergemoe fetch` first")
    dequantize: bool = Field(default=False, description="compress an unquantized copy of this checkpoint")
    average: Average | None = Field(default=None, description="checkpoints whose average is compressed; no `path` then")

    @model_validator(mode="before")
    @classmethod
    def _last(cls, given: Any) -> Any:
        """Take the last checkpoint of an average for the path."""
        if not isinstance(given, dict) or "average" not in given:
            return given
        if others := sorted(given.keys() & {"path", "revision", "dequantize"}):
            raise ValueError(f"`average` goes with none of {', '.join(others)}: `paths` has the checkpoints")
        paths = given["average"].get("paths") if isinstance(given["average"], dict) else None
        return {**given, "path": paths[-1]} if isinstance(paths, list) and paths else given

    @model_serializer(mode="wrap")
    def _without_no_average(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = write(self)
        return {key: value for key, value in found.items() if key != "average" or value is not None}

    @model_validator(mode="after")
    def _named(self) -> "Model":
        if not self.path:
            raise ValueError("path: it is missing. Name the folder of a checkpoint, or several in `average`")
        return self

    @model_validator(mode="after")
    def _commit(self) -> "Model":
        if self.revision is None:
            return self
        if not hub_cache.HUB_ID.fullmatch(self.path):
            raise ValueError(
                f"`revision` needs a hub model; path {self.path!r} is not an id such as Qwen/Qwen3-30B-A3B"
            )
        if not hub_cache.COMMIT.fullmatch(self.revision):
            command = hub_cache.fetch_command(self.path, self.revision)
            raise ValueError(
                f"revision {self.revision!r} is not a full commit hash. `{command}` prints the current one"
            )
        return self

    def paths(self) -> list[str]:
        """Return the checkpoints that are read: one, or those of an average."""
        return self.average.paths if self.average else [self.path]

    def folder(self) -> Path:
        """Return the checkpoint's folder on this machine; of an average that of the last.

        Raises:
            UserError: if a hub model is not fetched yet, with the command.
        """
        return model_folder.locate_checkpoint(self.path, self.revision)

    def copied(self) -> bool:
        """Tell whether a run starts with a copy: an average, a dequantized model, or one of another architecture."""
        if self.dequantize or self.average:
            return True
        return model_folder.read_config(self.folder()).get("model_type") == "deepseek"
