"""The card of a finished run: the checkpoint's card with scores, their metadata for the Hub, and file digests."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.repocard_data import EvalResult

from mergemoe.compressed import checkpoint_card
from mergemoe.report import metrics
from mergemoe.report.metrics import Scores
from mergemoe.report.study import ModelResults, RunResults
from mergemoe.text_table import markdown_table

NAMES = {
    "fidelity/kl": "KL(full || this) per token, nats",
    "fidelity/perplexity": "perplexity",
    "fidelity/top1": "share of tokens whose likeliest next token is the full model's",
}
_FILES = "## Files"


def scored_card(model: ModelResults, run: RunResults, provenance: str) -> str:
    """Return the card; `provenance` is one of the keys of its front matter."""
    dataset = run.parameters["calibrate"].get("dataset")
    metadata = {
        "datasets": [dataset] if dataset else None,
        "model_name": f"{model.name}/{run.name}",
        "eval_results": eval_results(model, run),
        "provenance": provenance,
        **model.layout.get("license", {}),
    }
    text = checkpoint_card.unscored_card(run.parameters, run.stock, **metadata)
    return "\n".join([text, metrics.scores_markdown(run.scores, model.full, model.tasks), _hashes(run.files)])


def eval_results(model: ModelResults, run: RunResults) -> list[EvalResult]:
    """Return the scores of a run as the Hub reads them."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name="held-out text" if task == "fidelity" else task,
            dataset_args=_measured(model.tasks[task]),
            metric_type=key.partition("/")[2],
            metric_name=NAMES.get(key, key.partition("/")[2]),
            metric_value=run.scores[key],
            metric_args=_error(run.scores, key),
        )
        for key in metrics.columns({"": {"full": {}, "runs": {"": run.scores}}})
        if (task := key.partition("/")[0]) in model.tasks
    ]


def _measured(artifact: Mapping[str, Any]) -> dict[str, Any]:
    settings = artifact.get("settings", {})
    chosen = {key: settings[key] for key in ("fewshot", "limit") if settings.get(key) is not None}
    facts = {key: artifact[key] for key in ("samples", "version", "note") if artifact.get(key) is not None}
    return {**facts, **chosen}


def _error(scores: Scores, key: str) -> dict[str, float] | None:
    return {"stderr": scores[f"{key}_stderr"]} if f"{key}_stderr" in scores else None


def packed_card(card: str, files: Mapping[str, str]) -> str:
    """Return the card of a packed copy of a run's checkpoint, with the digests of its own files."""
    return checkpoint_card.packed_text(card.rpartition(_FILES)[0]) + _hashes(files)


def _hashes(files: Mapping[str, str]) -> str:
    rows = [[f"`{name}`", f"`{digest}`"] for name, digest in sorted(files.items()) if name != "README.md"]
    return f"{_FILES}\n\n{markdown_table(['file', 'sha256'], rows)}\n"
