"""Small layers in float64, so that nothing but the algebra differs from a slow reference."""

import numpy as np
import torch

from mergemoe.merging import neuron_selection
from mergemoe.methods import catalogue
from mergemoe.moe.expert_forward import Activation, routed_output
from mergemoe.moe.experts import Experts
from mergemoe.moe.layer_sizes import kept_width
from mergemoe.moe.problem import Problem, groups_of
from mergemoe.moe.tokens import Activations, Tokens

SILU = Activation("silu")


class Given:
    """Tokens in memory, read as a capture is, in chunks; two make a sequence."""

    def __init__(self, fitted, heldout, rows=32):
        self.parts, self.rows = {False: fitted, True: heldout}, rows
        self.top_k = fitted.index.shape[1]
        self.held = torch.arange(len(fitted.hidden) + len(heldout.hidden)) >= len(fitted.hidden)

    def read(self, name, start, rows):
        assert name == "sequence"
        return torch.arange(start, start + rows) // 2

    heldout_sequences = Activations.heldout_sequences

    def chunk_count(self):
        return None

    def count(self, heldout=False):
        return len(self.parts[heldout].hidden)

    def chunks(self, heldout=False, device="cpu"):
        whole = vars(self.parts[heldout]).values()
        return [Tokens(*parts) for parts in zip(*(part.split(self.rows) for part in whole), strict=True)]


def draw_tokens(number, experts, hidden_size, top_k, generator):
    hidden = torch.randn(number, hidden_size, generator=generator, dtype=torch.float64)
    logits = torch.randn(number, experts, generator=generator, dtype=torch.float64)
    weight, index = logits.softmax(-1).topk(top_k)
    return Tokens(hidden, index, weight, logits)


def problem(
    expert_map=(0, 0, 1, 2, 1, 3), hidden_size=7, width=5, top_k=2, tokens=150, gated=True, biased=False, seed=0
):
    """A random layer; its experts are like one another, as those worth merging are."""
    generator = torch.Generator().manual_seed(seed)
    n = len(expert_map)

    def draw(*shape):
        shared = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
        return shared + torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    experts = Experts(
        up=draw(width, hidden_size),
        down=draw(hidden_size, width),
        gate=draw(width, hidden_size) if gated else None,
        up_bias=draw(width) if biased else None,
        gate_bias=draw(width) if gated and biased else None,
        down_bias=draw(hidden_size) if biased else None,
    )
    fitted = draw_tokens(tokens, n, hidden_size, top_k, generator)
    heldout = draw_tokens(40, n, hidden_size, top_k, generator)
    usage = torch.bincount(fitted.index.flatten(), minlength=n).tolist()
    return Problem(experts, groups_of(list(expert_map), usage), Given(fitted, heldout), SILU)


def features(experts, e, x):
    """h(x) of expert e, written out; x [H]."""
    up = experts.up[e] @ x + (0 if experts.up_bias is None else experts.up_bias[e])
    if experts.gate is None:
        return up * up.sigmoid()
    gate = experts.gate[e] @ x + (0 if experts.gate_bias is None else experts.gate_bias[e])
    return gate * gate.sigmoid() * up


def output(experts, e, x):
    """E(x), written out."""
    return experts.down[e] @ features(experts, e, x) + (0 if experts.down_bias is None else experts.down_bias[e])


def each_token(problem, heldout=False):
    """Yield (x [H], {expert: g}) for every token."""
    tokens = problem.reader.parts[heldout]
    for x, index, weight in zip(tokens.hidden, tokens.index.tolist(), tokens.weight.tolist(), strict=True):
        yield x, dict(zip(index, weight, strict=True))


def written_out(problem, experts, members=None):
    """The design P [n, P] and target Y [n, H] of all groups side by side (or of one), token by token.

    experts: one expert (E = 1) per group.
    """
    groups = problem.groups if members is None else [g for g in problem.groups if g.members == members]
    rows, targets = [], []
    for x, g in each_token(problem):
        if members is not None and not set(members) & set(g):
            continue
        row = []
        for group, expert in zip(groups, experts, strict=True):
            t = sum(g.get(j, 0.0) for j in group.members)
            p = features(expert, 0, x)
            row.append(t * (p if expert.down_bias is None else torch.cat([p, torch.ones(1, dtype=p.dtype)])))
        rows.append(torch.cat(row))
        inside = [j for group in groups for j in group.members if j in g]
        targets.append(sum(g[j] * output(problem.experts, j, x) for j in inside))
    return torch.stack(rows).numpy(), torch.stack(targets).numpy()


def left_over(p, y):
    """||W P - Y||^2 of the best W."""
    return ((p @ np.linalg.lstsq(p, y, rcond=None)[0] - y) ** 2).sum()


def best_columns(p, y, width, always=()):
    """Take the column that leaves the least squared error, one by one, solving anew each time."""
    taken = []
    for _ in range(width):
        rest = [j for j in range(p.shape[1]) if j not in taken and j not in always]
        taken.append(min(rest, key=lambda j: left_over(p[:, [*always, *taken, j]], y)))
    return sorted(taken)


def union_cost(problem, members, width):
    """The squared error that is left when the pool of the members is cut to `width` neurons, written out."""
    count = len(problem.experts)
    maps = [int(j not in members) for j in range(count)]
    (group,) = [g for g in groups_of(maps, [0] * count) if g.members == list(members)]
    local = type(problem)(problem.experts, [group], problem.reader, problem.act)
    p, y = written_out(local, [neuron_selection.pool(local, group)], group.members)
    always = range(len(members) * problem.experts.up.shape[1], p.shape[1])  # a down bias
    return left_over(p[:, [*best_columns(p, y, width, always), *always]], y)


def perfect_matchings(items):
    """Yield every way to divide an even number of items into pairs."""
    if not items:
        yield []
    for other in items[1:]:
        for rest in perfect_matchings([i for i in items[1:] if i != other]):
            yield [(items[0], other), *rest]


def merge(method, problem, **options):
    """The merged groups; options that are not given have the defaults of the table."""
    complete = catalogue.complete(method.__name__.rpartition(".")[2], options)
    complete.pop("routing", None)  # the solve itself takes it
    if "width" in complete:
        width, multiple = complete.pop("width"), complete.pop("width_multiple")
        complete["kept"] = kept_width(width, problem.experts.up.shape[1], multiple)
    return method.merge(problem, **complete)


def compressed(problem, method, options):
    """The routed output of the merged layer on held-out tokens."""
    experts, expert_map = problem.experts, {}
    found = {result.group.number: result.expert for result in merge(method, problem, **options)}
    merged = [found.get(group.number, experts[group.members[:1]]) for group in problem.groups]
    for group in problem.groups:
        expert_map |= dict.fromkeys(group.members, group.number)
    tokens = problem.reader.parts[True]
    y = torch.zeros_like(tokens.hidden)
    mapped = torch.tensor([expert_map[j] for j in range(len(experts))])[tokens.index]
    for number, expert in enumerate(merged):
        t = (tokens.weight * (mapped == number)).sum(1)
        y += routed_output(tokens.hidden, torch.zeros(len(y), 1).long(), t[:, None], expert, problem.act)
    return y


CASES = {
    "gated": {},
    "un-gated": {"gated": False},
    "biases": {"biased": True},
    "top-3, groups of three": {"top_k": 3, "expert_map": (0, 1, 0, 0, 1, 1)},
}
