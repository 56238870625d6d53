"""The base class of the sections of params.yaml, and the section for a source of text."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of params.yaml; unknown keys are errors, types are strict, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Text(Section):
    """A source of text: a local file, or a Hugging Face data set at one commit."""

    source: str | None = Field(default=None, description="a .jsonl, .jsonl.gz, .txt or .txt.gz file")
    dataset: str | None = Field(default=None, description="a Hugging Face data set, in place of `source`")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", description="its full commit hash")
    subset: str | None = Field(default=None, description="its configuration, if it has several")
    split: str = "train"
    field: str = Field(default="text", description="the key of the text in each row")
    samples: int = Field(gt=0, description="sequences")
    length: int = Field(gt=1, description="tokens per sequence")
    seed: int = 0
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
