"""The combinations of params.yaml's choices whose checkpoint fits a number of bytes, the best first."""

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

from mergemoe.artifacts import paths, verify
from mergemoe.artifacts.run import Run
from mergemoe.errors import UserError, shown
from mergemoe.report.metrics import Metrics
from mergemoe.text_table import aligned_table
from mergemoe.workflow.config.params import Params
from mergemoe.workflow.planning.model_counts import model_counts
from mergemoe.workflow.planning.plan import run_size
from mergemoe.workflow.planning.preflight import check_run, experts_of

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
LONGEST = 40  # lines of a model
KL = "fidelity/kl"


def parse_bytes(text: str) -> int:
    """Return a number of bytes such as 16GB, 14.9GiB or 16000000000.

    Raises:
        UserError: if it is none.
    """
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]*)", text.strip())
    if not found or found[2] not in UNITS or not (size := int(Decimal(found[1]) * UNITS[found[2]])):
        raise UserError(f"--bytes: got {shown(text)}; write a size as 16GB, 14.9GiB or 16000000000")
    return size


def current_scores(metrics: Metrics, claims: verify.Claims, results: Path) -> Metrics:
    """Return the runs of metrics.json whose fidelity was measured on what the choices, texts and code are now.

    Args:
        metrics: metrics.read_metrics.
        claims: the expected provenance of every artifact.
        results: the folder of all artifacts.
    """

    def current(model: str, subject: str) -> bool:
        return verify.is_current(
            paths.below(results, paths.SCORE, model=model, subject=subject, task="fidelity"), claims
        )

    return {
        model: {"runs": {name: scores for name, scores in found["runs"].items() if current(model, name)}}
        for model, found in metrics.items()
    }


def fitting_text(params: Params, metrics: Metrics, limit: int) -> str:
    """Return a table per model of what fits, whether or not it is listed in `runs`.

    Those that were measured come first, by their KL; then the others, the largest first.
    """
    lines, listed = list[str](), set(params.all_runs())
    combined = params.model_copy(update={"runs": "all"})
    for model in dict.fromkeys(run.model for run in params.all_runs()):
        measured = metrics.get(model, {"runs": {}})["runs"]
        sizes = {run: run_size(combined, run)["bytes"] for run in _possible(combined, model)}
        fits = [run for run, size in sizes.items() if size <= limit]
        fits.sort(key=lambda run: (*_rank(measured, run), -sizes[run], run.subject))
        whole = model_counts(params.model[model].folder()).bytes
        order = (
            "the lowest KL first"
            if any(run.subject in measured for run in fits)
            else "none measured, the largest first"
        )
        lines += [f"{model}: {whole:,} bytes; {len(fits)} of {len(sizes)} combinations fit {limit:,} ({order})"]
        if not fits:
            smallest = f"the smallest has {min(sizes.values()):,}" if sizes else "there are none"
            lines += [f"  {smallest}. Name a smaller `experts`, `width` or `quantize` in params.yaml"]
            continue
        rows = [["run", "bytes", "of full", "KL", ""]]
        for run in fits[:LONGEST]:
            kl = measured.get(run.subject, {}).get(KL)
            cells = [f"{sizes[run]:,}", f"{sizes[run] / whole:.1%}", "–" if kl is None else f"{kl:.3g}"]
            rows.append([f"  {run.subject}", *cells, "" if run in listed else "not in `runs`"])
        lines.append(aligned_table(rows, "<>>><"))
        if len(fits) > LONGEST:
            lines.append(f"  and {len(fits) - LONGEST} more")
    return "\n".join(lines)


def _possible(params: Params, model: str) -> list[Run]:
    """Return the combinations for a model that its checkpoint allows."""
    experts, found = experts_of(model, params), list[Run]()
    for run in params.all_runs():
        if run.model != model:
            continue
        try:
            check_run(params, run, experts)
        except UserError:
            continue
        found.append(run)
    return found


def _rank(measured: Mapping[str, Mapping[str, float]], run: Run) -> tuple[bool, float]:
    kl = measured.get(run.subject, {}).get(KL)
    return kl is None, kl or 0.0
