"""Section evaluate of params.yaml: the measures of a compressed model."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mergemoe.workflow.config.base import BatchTokens, Section, Text, Threads
from mergemoe.workflow.config.names import InputPath

# The tasks of the papers that lm-eval has: the seven of MergeMoE; those of MC-SMoE without WikiQA and HotpotQA, with
# squad_completion (is the answer in the continuation?) for SQuAD.
SUITES = {
    "mergemoe-seven": ("winogrande", "arc_easy", "arc_challenge", "hellaswag", "piqa", "squad_completion", "mrpc"),
    "mcsmoe": ("sst2", "mrpc", "multirc", "copa", "winogrande", "squad_completion"),
}


class Task(Section):
    """One task of lm-eval."""

    include: InputPath | None = Field(
        default=None, description="folder of task files, for a task that is not lm-eval's own"
    )
    trust_code: bool = Field(default=False, description="whether Python code that the files of `include` name may run")
    data_files: dict[str, InputPath] = Field(
        default={}, description="{split: .jsonl or .jsonl.gz file}: local data for a task of lm-eval"
    )
    fewshot: int | None = Field(
        default=None, ge=0, le=1000, description="examples in the prompt; None: the task's own number"
    )
    limit: int | None = Field(default=None, gt=0, lt=2**31, description="examples per (sub)task")
    batch_size: int = Field(default=32, gt=0, le=2**20)

    @model_validator(mode="after")
    def _one_source(self) -> "Task":
        if self.include and self.data_files:
            raise ValueError(
                "`include` defines a task of your own, `data_files` are for a task of lm-eval. Give one of them"
            )
        return self


class Generation(Section):
    """Greedy continuations of the first tokens of held-out sequences."""

    prompts: int = Field(default=80, gt=0, description="sequences that are continued, one prompt each")
    prompt_tokens: int = Field(default=32, gt=0)
    new_tokens: int = Field(
        default=96, ge=24, le=2**20, description="length of a continuation; a loop covers at least 24"
    )


class Evaluate(Section):
    """The measures of a compressed model."""

    tasks: dict[str, Task] = Field(
        default={}, description=f"{{name: settings}}, or a list of names; {', '.join(SUITES)} stand for several"
    )
    heldout: Text = Field(description="text for fidelity: perplexity, KL and output error against the full model")
    generation: Generation | None = Field(
        default=None, description="greedy continuations of held-out prompts; {} takes the defaults"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    batch_tokens: BatchTokens = 16384  # lm-eval has `batch_size`
    threads: Threads = 1

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_by_one(cls, given: Any) -> Any:
        """Turn a list of names, and names of suites, into {task: settings}; a task's own entry wins."""
        named = (
            dict.fromkeys(given, {}) if isinstance(given, list) and all(isinstance(n, str) for n in given) else given
        )
        if not isinstance(named, dict):
            return given
        found = {}
        for name, settings in named.items():
            for task in SUITES.get(name, (name,)):
                found[task] = named.get(task, settings)
        return {task: {} if settings is None else settings for task, settings in found.items()}

    @model_validator(mode="after")
    def _prompts(self) -> "Evaluate":
        wanted, heldout = self.generation, self.heldout
        if wanted and (wanted.prompts > heldout.samples or wanted.prompt_tokens > heldout.length):
            raise ValueError(
                f"generation takes {wanted.prompts} prompts of {wanted.prompt_tokens} tokens from `heldout`, which has "
                f"{heldout.samples} sequences of {heldout.length}. Lower `prompts`, or raise `samples` or `length`"
            )
        return self

    def scored(self) -> list[str]:
        """Return the names of all scores of a model: the tasks of lm-eval, fidelity, and generation if it is set."""
        return [*self.tasks, "fidelity", *(["generation"] if self.generation else [])]
