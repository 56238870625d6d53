"""Random layers, also degenerate ones: every method against numpy in float64, or one clear error."""

import re
import traceback
from collections import Counter

import chance
import numpy as np
import pytest
import torch
from random_layers import features, layer, output, remembered, routed, scored, tensor, weights

from mergemoe.errors import UserError
from mergemoe.grouping import cluster
from mergemoe.merging.solve import solve
from mergemoe.methods import catalogue
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem, groups_of
from mergemoe.moe.router_rule import Router

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]

HARD = ("low rank", "a large token", "large", "large weights", "enormous weights", "overflow")
SAID = "are NaN or infinite|beyond the range of|does not follow the rule"  # of saturated scores, the first is chosen
MISSING = 10 * np.finfo(np.float64).eps  # least_squares.solve_down: I times this share of the largest is no eigenvalue


def choose(draw, one):
    """Return a method with its options, and a grouping that fits it."""
    method = draw.choice(list(catalogue.METHODS))
    options = {}
    for name, option in catalogue.METHODS[method].options.items():
        options[name] = draw.choice(option.words) if option.words else option.default
        some = {"width": [1.0, 0.5], "width_multiple": [1, 2, 3, 32], "ridge": [0.0, 0.0, 0.1, option.default]}
        options[name] = draw.choice(some[name]) if name in some else options[name]
    if options.get("features", "selected") != "selected":
        options.pop("width", None)
    options = {name: value for name, value in options.items() if value is not None}
    options = catalogue.complete(method, options)
    if method == "slim":
        options["width"] = 0.5
    by = (
        "saliency"
        if options.get("routing") == "pruned"
        else draw.choice([by for by in catalogue.METHODS[method].groupings if by != "saliency"])
    )
    return method, options, by


def left_over(p, y, w):
    return ((p @ w.T - y) ** 2).sum()


def best(p, y):
    """||W P - Y||^2 of the best W, without the directions that count as missing; infinite if these decide.

    There a solution has what it was pulled toward. Features in float32 blur what lies a little above.
    """
    if not p.size:
        return (y**2).sum()
    cut = 20 * np.sqrt(MISSING * p.shape[1])
    found, every = (left_over(p, y, np.linalg.lstsq(p, y, rcond=least)[0].T) for least in (cut, 1e-15))
    return found if found - every < 1e-6 * (y**2).sum() else np.inf


def stored(tensors, one, expert_map):
    """The M experts of the result, in float64."""
    rows = {int(group): row for row, group in enumerate(tensors["groups"])}
    first = [expert_map.index(group) for group in range(max(expert_map) + 1)]
    return {
        role: np.stack([tensors[role][rows[m]].double().numpy() if m in rows else one.experts[role][e]
                        for m, e in enumerate(first)])
        for role in one.experts
    }  # fmt: skip


def with_ones(p, t, one):
    p = np.hstack([p, np.ones((len(p), 1))]) if "down_bias" in one.experts else p
    return t[:, None] * p


def design(one, merged, shares, fit, groups):
    """P [n, sum P] of the groups side by side."""
    return np.hstack([with_ones(features(merged, m, one.x[fit], one.act), shares[fit, m], one) for m in groups])


def excess(one, method, options, expert_map, usage, tensors, record):
    """Yield (recorded error, the reference's best, its rounding, the energy) of every least squares."""
    if one.kind == "enormous weights":
        return  # 1e-16 of such a feature is more than all the others
    fit, merged = ~one.held, stored(tensors, one, expert_map)
    groups = groups_of(expert_map, usage)
    members = [group.members for group in groups]
    shares = np.stack([one.g[:, m].sum(1) for m in members], 1)
    norm = sum((part**2).sum() for role, part in one.experts.items() if role.startswith("down"))

    def rounding(p):  # the objective is summed up from Gram matrices: what the prior gives must cancel in float64
        return 1e-15 * norm * (p**2).sum()

    if method == "mergemoe" and options["ridge"] == 0 and one.dtype == torch.float32:
        for found in record["groups"]:
            group = groups[found["group"]]
            w = group.weights.numpy()
            mean = {r: np.einsum("c,c...->...", w, part[group.members])[None] for r, part in one.experts.items()}
            p = with_ones(features(mean, 0, one.x[fit], one.act), np.ones(fit.sum()), one)
            y = sum(u * output(one.experts, e, one.x[fit], one.act) for u, e in zip(w, group.members, strict=True))
            down = merged["down"][found["group"]]
            down = np.hstack([down, merged["down_bias"][found["group"], :, None]]) if "down_bias" in merged else down
            energy, last_bits = (y**2).sum(), 1e-13 * (down**2).sum() * (p**2).sum()
            yield left_over(p, y, down) / energy if energy else 0.0, best(p, y), rounding(p) + last_bits, energy
    exact = one.dtype == torch.float32 or options.get("features") == "selected" or method in ("select", "slim")
    if options.get("ridge") != 0 or options.get("routing", "preserved") != "preserved" or not exact:
        return
    if method == "routed":
        for found in record["groups"]:
            m = found["group"]
            rows = fit & (one.g[:, members[m]] != 0).any(1)
            y = sum(one.g[rows, j, None] * output(one.experts, j, one.x[rows], one.act) for j in members[m])
            p = design(one, merged, shares, rows, [m])
            if rows.any():
                yield found["objective"]["fit"], best(p, y), rounding(p), (y**2).sum()
    if method in ("joint", "select", "slim"):
        p, y = design(one, merged, shares, fit, range(len(groups))), routed(one.experts, one.g, one.x, one.act)[fit]
        yield record["groups"][0]["objective"]["fit"], best(p, y), rounding(p), (y**2).sum()


def run(draw, one):
    method, options, by = choose(draw, one)
    reader = remembered(one)
    experts = Experts(**{role: tensor(part, one.dtype) for role, part in one.experts.items()})
    usage = (one.g[~one.held] != 0).sum(0).tolist()
    act = Activation(one.act)
    problem = Problem(experts.map(lambda part: part.float()), groups_of(range(one.count), usage), reader, act)
    norms = [float(part.abs().sum()) for part in tensor(one.g, torch.float64).T]
    likeness = (
        np.nan_to_num(np.corrcoef(one.x @ one.router.T, rowvar=False)).tolist()
        if len(one.x) > 1
        else np.eye(one.count).tolist()
    )
    profiled = {"usage": usage, "saliency": norms, "router_similarity": likeness}
    routing = options.get("routing", "preserved")
    kept = draw.randint(one.rule.top_k if routing != "preserved" else 1, one.count)
    options |= {"width": 1.0} if options.get("width") == "auto" else {}
    width = catalogue.kept_width(options, one.experts["up"].shape[1])
    case = (one.kind, method, options, by, kept, str(one.dtype))
    expert_map = cluster.group_experts(by, kept, problem, profiled, width).expert_map
    router = Router(one.rule, tensor(one.router, one.dtype)) if routing != "preserved" else None
    tensors, record = solve(experts, expert_map, usage, reader, act, router=router, method=method, **options)
    return case, expert_map, usage, tensors, record, options, method


def kept_apart(order, top_k):
    """How far the last score that is chosen lies from the first that is not."""
    return (order[:, top_k - 1] - order[:, top_k]).min() if order.shape[1] > top_k else 1.0


def addends(one, merged, g, rows):
    """The squared norm of what float32 adds up, with opposite signs, to the layer's output: its last bits remain.

    The features are sums, too: with the absolute values of all that they are made of, they are what was added up.
    """
    found, x = 0.0, np.abs(one.x[rows])
    for experts, weight in ((one.experts, one.g), (merged, g)):
        absolute = {role: np.abs(part) for role, part in experts.items()}
        for e in range(weight.shape[1]):
            h = features(absolute, e, x, one.act) @ absolute["down"][e].T
            found = found + weight[rows, e, None] * (h + np.abs(experts.get("down_bias", np.zeros((e + 1, 1)))[e]))
    return (found**2).sum()


def checked(one, expert_map, usage, tensors, record, options, method):
    """Return what is wrong with a result; nothing if it is right."""
    wrong = [f"{name} is not finite" for name, part in tensors.items() if not part.isfinite().all()]
    for found, least, rounding, energy in excess(one, method, options, expert_map, usage, tensors, record):
        if energy > 1e-60 and (found is None or not found <= (least * 1.001 + rounding) / energy + 1e-6):
            wrong.append(f"the objective is {found}, the reference's {least / energy}")
    routing, merged = options.get("routing", "preserved"), stored(tensors, one, expert_map)
    if method == "oracle" or "down" not in merged:
        return wrong
    groups = [group.members for group in groups_of(expert_map, usage)]
    g = np.stack([one.g[:, m].sum(1) for m in groups], 1)
    if routing != "preserved":
        logits = one.x @ tensors["router"].double().numpy().T
        g = weights(logits, one.rule)
        order = -np.sort(-scored(logits, one.rule), axis=1)
        if kept_apart(order, one.rule.top_k) < 1e-5:
            return wrong  # the last bits choose the expert
    for part, rows in {"fit": ~one.held, "heldout": one.held}.items():
        y, found = routed(one.experts, one.g, one.x, one.act)[rows], record["output_error"][part]
        energy = (y**2).sum()
        if energy < 1e-60:
            continue  # float32 has no such numbers
        if found is None:
            wrong.append(f"the {part} error is {found} of an energy of {energy}")
        else:
            expected = ((routed(merged, g, one.x, one.act)[rows] - y) ** 2).sum() / energy
            rounding = 1e-6 * np.sqrt(addends(one, merged, g, rows) / energy)
            if not abs(found - expected) <= 1e-4 * expected + rounding * np.sqrt(expected) + rounding**2:
                wrong.append(f"the {part} error is {found}, numpy's {expected}")
    return wrong


@np.errstate(over="ignore")
def test_every_method_is_as_good_as_numpy_or_refuses(caplog):
    caplog.set_level("ERROR")
    counts, faults = Counter(), []
    for draw in chance.rounds("numbers", least=200):
        one = layer(draw)
        try:
            case, *found = run(draw, one)
            wrong = checked(one, *found)
            seen = "WRONG" if wrong else "right"
        except UserError as error:
            case, wrong, seen = (one.kind, str(one.dtype)), str(error), "refused"
            narrow = one.dtype == torch.float16 and "beyond the range of float16" in wrong  # its largest is 65,504
            if "held-out" not in wrong and not narrow and not (one.kind in HARD and re.search(SAID, wrong)):
                seen = "refused without need"
        except Exception as error:
            case, wrong, seen = (one.kind, str(one.dtype)), traceback.format_exc()[-900:], f"raw {type(error).__name__}"
        counts[seen] += 1
        if seen not in ("right", "refused"):
            faults.append((case, wrong))
    chance.tell("numbers", counts)
    assert not faults, "\n".join(map(str, faults[:20]))
