"""Near-ties: decisions that rounding may turn, because two alternatives are equally good.

A token may choose either of two experts whose router logits are the same but for rounding; a search, either of two
groupings of the same cost; a solve, either of two neurons or priors that leave the same error. So a result whose
decisions differ is a near-tie if what it comes from is as recorded, and the numbers by which the stage chooses, its
goals, differ by rounding, and no more: a goal that is the same to the last digit was not rounded otherwise. No more may
move than rounding can turn: few tokens of a capture, and part of a layer's weights. What follows from a near-tie is
another model, as good as the recorded one; its scores are compared, and its numbers are not.
"""

import graphlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mergemoe.artifacts.paths import MODELS
from mergemoe.workflow.comparison.array_parts import CHOSEN
from mergemoe.workflow.comparison.bounds import GOAL_BOUNDS, MERGED, MOVED, bound, has_descent, is_score
from mergemoe.workflow.comparison.json_parts import MADE_FROM, TEXTS, THE_FILE

State = Literal["same", "tie", "follows", "different"]


class Choice(NamedTuple):
    """What a stage may choose one way or another: the parts that follow a choice, and the goals that it is made by."""

    parts: str
    goals: tuple[str, ...]


_ROUTED = Choice(r"expert_index\.N|expert_weight\.N|" + CHOSEN + r"\.N", ("router_logits.N", "hidden.N"))
_ERRORS = ("output_error.fit", "output_error.heldout")
_SOLVED = r"groups\.(?!members|group\b).*|(down|gate|up|router)(_bias)?(\.N)?"
CHOICES = {
    "capture": _ROUTED,
    "evaluate": _ROUTED,  # the captures of the full model on held-out text
    "cluster": Choice(r"expert_map.*|groups\..*", ("cost",)),
    "solve": Choice(_SOLVED, _ERRORS),
    "refine": Choice(_SOLVED + r"|best_step|steps|history\..*", _ERRORS),
    "quantize": Choice(_SOLVED, _ERRORS),
}


FIXED = {THE_FILE, MADE_FROM, "layer", "experts", "by", "method", "kept", "width", "tokens.fit", "tokens.heldout"}


class Ties(NamedTuple):
    """Near-ties in words, by path, and the paths of them and of what follows, which scores judge."""

    words: dict[str, str]
    by_scores: list[str]


class Differences:
    """The results that differ, and how far each may."""

    def __init__(self, stages: Mapping[str, Mapping[str, Any]]):
        """Take the stages of an audit: {stage: {"apart": {path: {"decisions": [part], "numbers": {part: size}}}}}."""
        self.stage = {path: name for name, one in stages.items() for path in one["apart"]}
        self.apart = {path: stages[name]["apart"][path] for path, name in self.stage.items()}

    def numbers_beyond(self, path: str) -> dict[str, float]:
        """Return the numbers that differ by more than rounding."""
        numbers = self.apart[path]["numbers"].items()
        return {part: size for part, size in numbers if not size <= bound(self.stage[path], path, part)}

    def beyond(self, path: str) -> list[str]:
        """Return the parts that differ by more than rounding."""
        return [*self.apart[path]["decisions"], *self.numbers_beyond(path)]

    def goals(self, path: str) -> float:
        """Return by how much the goals of a stage's choices differ; infinity if they are no numbers any more."""
        found = self.apart.get(record_of(path), {"decisions": [], "numbers": {}})
        goals = CHOICES[self.stage[path]].goals
        sizes = [found["numbers"].get(goal, 0.0) for goal in goals]
        if {THE_FILE, *goals} & set(found["decisions"]) or any(size != size for size in sizes):  # NaN
            return float("inf")
        return max(sizes)


def near_ties(
    stages: Mapping[str, Mapping[str, Any]],
    inputs_of: Callable[[str], Iterable[str]],
    parts_of: Callable[[str], Collection[str]],
) -> Ties:
    """Return the near-ties among the differences that an audit found, and what follows from them.

    Args:
        stages: {stage: {"apart": {path: {"decisions": [part], "numbers": {part: size}}}}}.
        inputs_of: gives the files and folders that a result was made from.
        parts_of: gives the names of a result's parts, as in its summary.
    """
    differences = Differences(stages)
    if not any(map(differences.beyond, differences.apart)):
        return Ties({}, [])
    before = _made_before(differences.apart, inputs_of)
    states: dict[str, State] = {}
    try:
        for path in graphlib.TopologicalSorter(before).static_order():
            found = {states[other] for other in before[path]}
            if "different" in found:
                states[path] = "different"
            else:
                states[path] = "follows" if found - {"same"} else _own_state(path, differences, parts_of)
    except graphlib.CycleError:  # forged: no result is made from itself
        return Ties({}, [])
    words = {path: _words(path, differences) for path in differences.apart if states[path] == "tie"}
    return Ties(words, [path for path in differences.apart if states[path] in {"tie", "follows"}])


def is_free(path: str, part: str) -> bool:
    """Tell whether a part of what follows from a near-tie may be any: what a choice of experts or neurons decides."""
    if is_score(path):
        return bool(re.fullmatch(rf"parts\.\*\..*|parts\..*output_error|{re.escape(TEXTS)}.*", part))
    if path.startswith(f"{MODELS}/"):
        return bool(re.fullmatch(MERGED, part))
    return part not in FIXED


def record_of(path: str) -> str:
    """Return the file that has the goals of a result: weights have a record beside them."""
    return f"{path.removesuffix('.safetensors')}.json" if path.endswith(".safetensors") else path


def _made_before(apart: Collection[str], inputs_of: Callable[[str], Iterable[str]]) -> dict[str, set[str]]:
    """Return, for each differing result, those that it depends on: its inputs, and what its pass captured before it."""
    below: dict[str, list[str]] = {}
    layers: dict[Path, list[str]] = {}
    for path in sorted(apart):
        for folder in (Path(path), *Path(path).parents):
            below.setdefault(str(folder), []).append(path)
        if path.endswith(".h5"):
            layers.setdefault(Path(path).parent, []).append(path)
    earlier = {path: before for one in layers.values() for before, path in zip(one, one[1:], strict=False)}
    last = {folder: one[-1] for folder, one in layers.items()}
    found: dict[str, set[str]] = {}
    for path in apart:
        one = earlier.get(path) if path.endswith(".h5") else last.get(Path(path).parent)
        # The provenance.json of a folder stands for its files.
        made_from = (
            other for name in inputs_of(path) for other in below.get(name.removesuffix("/provenance.json"), ())
        )
        found[path] = {*made_from, *([one] if one else [])} - {path}
    return found


def _own_state(path: str, differences: Differences, parts_of: Callable[[str], Collection[str]]) -> State:
    """Return the state of a result whose inputs are as recorded."""
    beyond = differences.beyond(path)
    if not beyond:
        return "same"
    if moved := _continued(beyond):
        return "tie" if len(moved) == 1 or has_descent(path) else "different"
    stage = differences.stage[path]
    choice = CHOICES.get(stage)
    if choice is None or not all(re.fullmatch(choice.parts, part) for part in beyond):
        return "different"
    has_goals = bool(set(choice.goals) & set(parts_of(record_of(path))))
    most = float("inf") if path.endswith(".json") else MOVED[stage]  # a record may tell of a ridge ten times as large
    few = all(size <= most for size in differences.numbers_beyond(path).values())
    return "tie" if has_goals and few and 0 < differences.goals(path) <= GOAL_BOUNDS[stage] else "different"


def _continued(beyond: list[str]) -> list[str]:
    """Return which greedy continuations are others, if nothing else is."""
    found = re.fullmatch(rf"{re.escape(TEXTS)} of (.+)", beyond[0]) if len(beyond) == 1 else None
    return found[1].split(", ") if found else []


def _words(path: str, differences: Differences) -> str:
    if _continued(beyond := differences.beyond(path)):
        return f"{path}: other {beyond[0]}, where two tokens nearly tie"
    numbers = differences.numbers_beyond(path)
    moved = numbers.pop(f"{CHOSEN}.N", 0.0) ** 2 / 2  # a choice that moves takes one 1 of n away, and adds one
    others = [f"about {moved:.1e} of the choices of experts"] if moved else []
    others += differences.apart[path]["decisions"]
    others += [f"{part} (by {size:.1e} of its norm)" for part, size in numbers.items()]
    goals = " and ".join(CHOICES[differences.stage[path]].goals)
    return f"{path}: other {', '.join(others)}; {goals} the same but for {differences.goals(path):.1e}"
