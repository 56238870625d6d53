"""The verdict of an audit: identical, equivalent or different.

Equivalent is what another processor gives: every decision is the same but for near-ties (ties.py), the numbers inside
differ by rounding (bounds.py), and the scores by less than a tenth of their standard errors.
"""

from collections.abc import Mapping
from typing import Any

from mergemoe.artifacts.paths import RESULTS
from mergemoe.workflow.comparison.bounds import bound, is_score
from mergemoe.workflow.comparison.ties import is_free

IDENTICAL, EQUIVALENT, DIFFERENT = "identical", "equivalent", "different"

OURS = f"{RESULTS}/"
MODELS_OF, SCORES_OF = f"{RESULTS}/models/", f"{RESULTS}/scores/"
STANDARD_ERRORS = 0.1
# Of what magnifies roundings: runs that end with a descent, greedy continuations, where two tokens may nearly tie, and
# what follows from a near-tie.
MAGNIFIED = 0.5
RELATIVE = 1e-3  # of a number in metrics.json that has no standard error
RELATIVE_AFTER_TIE = 1e-2


def verdict(found: Mapping[str, Any]) -> str:
    """Return the verdict on the findings of an audit (audit.py)."""
    if found["identical"]:
        return IDENTICAL
    return DIFFERENT if reasons(found) else EQUIVALENT


def reasons(found: Mapping[str, Any]) -> list[str]:
    """Return the reasons why findings are different; none if they are equivalent."""
    facts = [fact for one in found["stages"].values() for fact in one["faults"]] + list(found["strays"])
    for name, one in found["stages"].items():
        facts += [f"{path} is not the recorded file" for path in one["other_bytes"] if not path.startswith(OURS)]
        for path, apart in _judged(one).items():
            facts += [f"{path}: {part} is another" for part in apart["decisions"]]
            facts += [
                f"{path}: {part} differs by {size:.1e} of its norm, where rounding explains "
                f"{bound(name, path, part):.1e}"
                for part, size in apart["numbers"].items()
                if not size <= bound(name, path, part)
            ]
    following = _following_runs(found["stages"])
    for key, (committed, here, error) in found["metrics"]["differ"].items():
        if not _close(key, committed, here, error, key.startswith(following)):
            facts.append(f"metrics.json: {key} is {here}, and {committed} was committed")
    return facts


def largest(stage: Mapping[str, Any]) -> float | None:
    """Return the largest difference of numbers in a stage's results; None if they differ in more than numbers.

    Near-ties and what follows from them are left out, and score files, of which metrics.json tells.
    """
    apart = _judged(stage)
    if any(one["decisions"] for one in apart.values()):
        return None
    placed = [one["numbers"] for path, one in apart.items() if not is_score(path)]
    return max((size for numbers in placed for size in numbers.values()), default=0.0)


def _judged(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the differences that bounds judge: not what follows from near-ties."""
    by_scores = set(stage["by_scores"])
    return {
        path: {
            "decisions": [part for part in one["decisions"] if not (path in by_scores and is_free(path, part))],
            "numbers": {
                part: size for part, size in one["numbers"].items() if not (path in by_scores and is_free(path, part))
            },
        }
        for path, one in stage["apart"].items()
    }


def _following_runs(stages: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how keys of metrics.json begin whose scores follow from a near-tie."""
    paths = [path for one in stages.values() for path in one["by_scores"]]
    runs = (path.removeprefix(MODELS_OF).rpartition("/")[0] + " " for path in paths if path.startswith(MODELS_OF))
    states = (path for path in paths if path.startswith(SCORES_OF) and not is_score(path))
    models = (path.removeprefix(SCORES_OF).partition("/")[0] + "/" for path in states)
    return (*dict.fromkeys(runs), *dict.fromkeys(models))  # what is measured against the full model follows with it


def _close(key: str, committed: float | None, here: float | None, error: float | None, follows: bool) -> bool:
    if committed is None or here is None:
        return False
    run, _, score = key.partition(" ")
    if score.startswith("cost/"):  # counted
        return here == committed
    most = MAGNIFIED if follows or "+" in run or score.startswith("generation/") else STANDARD_ERRORS
    if score.endswith("_stderr"):
        error = committed  # of a standard error, its own size
    relative = RELATIVE_AFTER_TIE if follows else RELATIVE
    far = abs(here - committed)
    return far <= (max(most * error, _one_answer(committed, error)) if error else relative * abs(committed))


def _one_answer(score: float, error: float) -> float:
    """Return the weight of one answer in a share of right answers; its standard error tells how many there are."""
    return error**2 / (score * (1 - score)) if 0 < score < 1 else 0.0
