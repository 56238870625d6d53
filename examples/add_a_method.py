"""Add a merging method, and compare it with two others on a small random layer.

python examples/add_a_method.py

The method keeps the most used expert of each group. In the project, `merge` is all of mergemoe/methods/dominant.py, and
a row in mergemoe/methods/catalogue.py names the groupings that it accepts: CONTRIBUTING.md shows both.
"""

import sys

import torch

from mergemoe.merging.solve import solve
from mergemoe.methods.catalogue import ANY, METHODS, complete
from mergemoe.methods.options import Method
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Merged, Problem
from mergemoe.moe.tokens import Remembered


def merge(problem: Problem) -> list[Merged]:
    """Return, per group of several experts, its most used expert unchanged."""
    return [Merged(group, problem.experts[[group.members[group.dominant]]], {}) for group in problem.merged_groups]


def main() -> None:
    """Merge 6 experts of a random layer into 3 by each method; print the error of the layer's output, held out."""
    torch.manual_seed(0)
    shapes = {"up": (16, 8), "gate": (16, 8), "down": (8, 16)}
    experts = Experts(
        **{role: torch.randn(3, *s).repeat(2, 1, 1) + 0.5 * torch.randn(6, *s) for role, s in shapes.items()}
    )
    logits = torch.randn(2000, 6)
    weight, index = logits.softmax(-1).topk(2)
    tokens = {"hidden": torch.randn(2000, 8), "expert_index": index, "expert_weight": weight, "router_logits": logits}
    reader = Remembered([tokens | {"sequence": torch.arange(2000) // 500}], heldout=torch.tensor([0, 0, 0, 1]))
    usage = index.flatten().bincount(minlength=6).tolist()

    sys.modules["mergemoe.methods.dominant"] = sys.modules[__name__]  # in place of that file
    METHODS["dominant"] = Method("the most used expert of each group", groupings=ANY)  # in place of that row
    for method in ("average", "dominant", "routed"):
        options = complete(method, {})
        _, record = solve(experts, [0, 1, 2, 0, 1, 2], usage, reader, Activation("silu"), method=method, **options)
        print(f"{method:9} {record['output_error']['heldout']:.3f}")


if __name__ == "__main__":
    main()
