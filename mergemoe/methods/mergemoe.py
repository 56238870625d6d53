"""MergeMoE (arXiv 2510.14436): usage-weighted features, least squares for the down-projection.

A group with weights w_j = f_j / sum f (Theorem 1) gets gate and up projections sum_j w_j W^j (T2, T3, eq. 4), and the
down-projection W_D' T1, T1 = Q P^+ (eqs. 5, 6), over ALL calibration tokens. T1 is never formed: W_D' Q is the
weighted output of the members, so sums over tokens are enough (docs/method.md). A family's norm after the
down-projection is left out of both sides: least squares sees what is linear.
"""

import torch

from mergemoe.averaging import by_usage
from mergemoe.features import features, linear_output
from mergemoe.leastsquares import Moments, solve_down
from mergemoe.problem import Merged, Problem
from mergemoe.progress import track
from mergemoe.routed import with_down
from mergemoe.weights import Experts


def merge(problem: Problem, ridge: float = 0.0) -> list[Merged]:
    """Return, per group, the merged expert and how well the tokens pin it down."""
    averaged = by_usage(problem, problem.several)
    fit = sums(problem, averaged, heldout=False)
    heldout = sums(problem, averaged, heldout=True)
    results = []
    for group, expert, fitted, unseen in zip(problem.several, averaged, fit, heldout, strict=True):
        solution = solve_down(fitted, ridge)
        record = {
            "rank": solution.rank,
            "effective_rank": solution.effective_rank,
            "condition": solution.condition,
            "objective": {"fit": fitted.error(solution.down), "heldout": unseen.error(solution.down)},
        }
        results.append(Merged(group, with_down(expert, solution.down), record))
    return results


def sums(problem: Problem, averaged: list[Experts], heldout: bool) -> list[Moments]:
    """Return, per group, the sums of P and Y = sum_j w_j E_j(X) over the fitted (or held-out) tokens."""
    experts, device = problem.experts, problem.experts.up.device
    hidden_size, width = experts.down.shape[1:]
    biased = experts.down_bias is not None  # a bias is the weight of one more feature, constant 1
    moments = [Moments.zeros(width + biased, hidden_size, device) for _ in averaged]
    chunks = problem.reader.chunks(heldout=heldout, device=device)
    label = f"chunks of {'held-out' if heldout else 'fitted'} tokens"
    for tokens in track(chunks, label, problem.reader.chunk_count()):
        for group, expert, moment in zip(problem.several, averaged, moments, strict=True):
            p = features(tokens.hidden, expert, 0, problem.act)
            p = torch.cat([p, torch.ones_like(p[:, :1])], 1) if biased else p
            y = sum(
                w * linear_output(tokens.hidden, experts, j, problem.act).double()
                for w, j in zip(group.weights.tolist(), group.members, strict=True)
            )
            moment.add(p, y)  # type: ignore[arg-type]  # the sum of tensors is one
    return moments
