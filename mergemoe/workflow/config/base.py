"""The base class of the sections of params.yaml, and the section for a source of text."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mergemoe.workflow.config.names import InputPath

# Bounds above which a number is a slip of the hand, and a job would end late, in an error of a library or never.
Threads = Annotated[int, Field(gt=0, le=1024, description="CPU threads; the last bits depend on it")]
BatchTokens = Annotated[int, Field(gt=0, le=2**30, description="tokens of one forward batch; memory grows with it")]


class Section(BaseModel):
    """A part of params.yaml; unknown keys are errors, types are strict, numbers finite, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Text(Section):
    """A source of text: a local file, or a Hugging Face data set at one commit."""

    source: InputPath | None = Field(default=None, description="a .jsonl, .jsonl.gz, .txt, .txt.gz or .parquet file")
    dataset: str | None = Field(default=None, description="a Hugging Face data set, in place of `source`")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", description="its full commit hash")
    subset: str | None = Field(default=None, description="its configuration, if it has several")
    split: str = "train"
    field: str | Annotated[list[str], Field(min_length=1)] = Field(
        default="text", description="the key of the text in each row, or several, whose texts are joined"
    )
    skip_invalid: bool = Field(default=False, description="leave out and count rows without text; else one is an error")
    samples: int = Field(gt=0, le=10_000_000, description="sequences")
    length: int = Field(gt=1, le=10_000_000, description="tokens per sequence")
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    pack: bool = Field(
        default=True, description="join documents and cut them; false: one document per sequence, cut or padded"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Text":
        if (self.source is None) == (self.dataset is None):
            raise ValueError("give either `source` (a local file) or `dataset` (a Hugging Face data set)")
        if self.dataset is not None and self.revision is None:
            raise ValueError("`dataset` needs `revision`, its full commit hash, because a data set may change")
        return self
