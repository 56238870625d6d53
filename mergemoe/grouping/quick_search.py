"""The sketch of a layer with which a quick search counts: a quarter of each expert's neurons and of the outputs.

Which unions are cheapest hardly depends on the rest (docs/log.md), and the work grows with the square of the neurons.
Products of unions are in float32, summed in float64 over the chunks of tokens.
"""

from dataclasses import replace

import torch

from mergemoe.merging.neuron_selection import keep_neurons
from mergemoe.moe.experts import joined
from mergemoe.moe.layer_sizes import quarter
from mergemoe.moe.problem import Problem

MANY = 32  # experts of a layer; at real widths their full search takes minutes, that of 128 experts hours


def usual_search(experts: int) -> str:
    """Return the search that `mergemoe.compress` uses for a layer of N experts: quick if they are many."""
    return "quick" if experts >= MANY else "full"


def sketch(problem: Problem) -> Problem:
    """Return the layer with a quarter of each expert's neurons, and a quarter as many outputs.

    The neurons are those with the largest ||w_U|| ||w_D||; ties go to the lower number. An output y becomes R y
    with a Gaussian R [H / 4, H], drawn by a fixed seed; on average ||R y|| is ||y|| (Johnson and Lindenstrauss, 1984).
    The norm of a family's output is left out.
    """
    experts = problem.experts
    strength = experts.up.square().sum(2) * experts.down.square().sum(1)
    order = strength.argsort(dim=1, descending=True, stable=True)
    best = order[:, : quarter(order.shape[1])].sort(1)[0]
    few = joined([keep_neurons(experts[[expert]], neurons) for expert, neurons in enumerate(best)])
    hidden_size = few.down.shape[1]
    drawn = torch.randn(quarter(hidden_size), hidden_size, generator=torch.Generator().manual_seed(0))
    r = drawn.to(few.down) / len(drawn) ** 0.5
    bias = None if few.down_bias is None else few.down_bias @ r.T
    return replace(problem, experts=replace(few, down=r @ few.down, down_bias=bias))
