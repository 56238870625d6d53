"""Write the card of a finished run: the checkpoint's card with scores, their metadata for the Hub, and file digests."""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

from mergemoe.compressed import checkpoint_card
from mergemoe.report import metrics
from mergemoe.report.metrics import Scores
from mergemoe.report.study import Model, Run

NAMES = {
    "fidelity/kl": "KL(full || this) per token, nats",
    "fidelity/perplexity": "perplexity",
    "fidelity/top1": "share of tokens whose likeliest next token is the full model's",
}


def card(model: Model, run: Run, provenance: str) -> str:
    """Return the card; the provenance is a comment of its front matter."""
    text = checkpoint_card.describe(run.parameters, run.stock)
    front = f"---\n# provenance: {provenance}\n"
    index = yaml.safe_dump(metadata(model, run), sort_keys=False, allow_unicode=True, width=120)
    text = text.replace("---\n", front, 1).replace("\n---\n", f"\n{index}---\n", 1)
    return "\n".join([text, metrics.markdown(run.scores, model.full, model.tasks), _hashes(run.files)])


def metadata(model: Model, run: Run) -> dict[str, Any]:
    """Return the Hub's metadata beside the checkpoint card's: scores, and the data set of the calibration."""
    results = [
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
    dataset = run.parameters["calibrate"].get("dataset")
    index = eval_results_to_model_index(f"{model.name}/{run.name}", results)
    return {**({"datasets": [dataset]} if dataset else {}), "model-index": index}


def _measured(artifact: Mapping[str, Any]) -> dict[str, Any]:
    settings = artifact.get("settings", {})
    chosen = {key: settings[key] for key in ("fewshot", "limit") if settings.get(key) is not None}
    facts = {key: artifact[key] for key in ("samples", "version", "note") if artifact.get(key) is not None}
    return {**facts, **chosen}


def _error(scores: Scores, key: str) -> dict[str, float] | None:
    return {"stderr": scores[f"{key}_stderr"]} if f"{key}_stderr" in scores else None


def _hashes(files: Mapping[str, str]) -> str:
    rows = [[f"`{name}`", f"`{digest}`"] for name, digest in sorted(files.items()) if name != "README.md"]
    return f"## Files\n\n{checkpoint_card.table(['file', 'sha256'], rows)}\n"
