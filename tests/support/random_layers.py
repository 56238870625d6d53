"""Random layers, also degenerate ones, in float64, and numpy's own forward pass of them."""

from dataclasses import dataclass, field

import numpy as np
import torch

from mergemoe.moe.router_rule import Rule
from mergemoe.moe.tokens import Remembered

KINDS = ("usual", "low rank", "equal tokens", "equal experts", "one token", "unused", "zeros", "a large token", "large")
KINDS += ("large weights", "enormous weights", "overflow", "no held-out token")


@dataclass
class Layer:
    """A random layer in float64, and the tokens that numpy fits: x [n, H], g [n, N]."""

    kind: str
    experts: dict[str, np.ndarray]
    router: np.ndarray
    rule: Rule
    x: np.ndarray
    held: np.ndarray
    act: str
    dtype: torch.dtype
    g: np.ndarray = field(init=False)

    def __post_init__(self):
        self.g = weights(self.x @ self.router.T, self.rule)

    @property
    def count(self):
        return len(self.experts["up"])


def scored(logits, rule):
    if rule.scores == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    scores = np.exp(logits - logits.max(1, keepdims=True))
    return scores / scores.sum(1, keepdims=True)


def weights(logits, rule):
    """g [n, N], written out; of equal scores the lower index is taken."""
    scores = scored(logits, rule)
    g = np.zeros_like(scores)
    for row, score in zip(g, scores, strict=True):
        chosen = np.argsort(-score, kind="stable")[: rule.top_k]
        row[chosen] = score[chosen] / (score[chosen].sum() or 1 if rule.normalized else 1) * rule.scaling
    return g


FUNCTIONS = {
    "silu": lambda z: z / (1 + np.exp(-z)),
    "relu": lambda z: z.clip(0),
    "relu2": lambda z: z.clip(0) ** 2,
}


def features(experts, e, x, act):
    up = x @ experts["up"][e].T + experts.get("up_bias", np.zeros((e + 1, 1)))[e]
    if "gate" not in experts:
        return FUNCTIONS[act](up)
    return FUNCTIONS[act](x @ experts["gate"][e].T + experts.get("gate_bias", np.zeros((e + 1, 1)))[e]) * up


def output(experts, e, x, act):
    y = features(experts, e, x, act) @ experts["down"][e].T
    return y + experts["down_bias"][e] if "down_bias" in experts else y


def routed(experts, g, x, act):
    return sum(g[:, e, None] * output(experts, e, x, act) for e in range(g.shape[1]))


def rounded(array, dtype):
    most = torch.finfo(dtype).max
    return torch.from_numpy(array).clamp(-most, most).to(dtype).double().numpy()


def layer(draw):
    kind = draw.choice(KINDS)
    rng = np.random.default_rng(draw.randrange(2**63))
    n, hidden, width = draw.randint(2, 8), draw.randint(2, 10), draw.randint(1, 8)
    count = 1 if kind == "one token" else draw.choice([3, 20, 150])
    dtype = draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    roles = {"up": (width, hidden), "down": (hidden, width)}
    roles |= {"gate": (width, hidden)} if draw.random() < 0.7 else {}
    if draw.random() < 0.3:
        roles |= {f"{role}_bias": (shape[0],) for role, shape in roles.items()}
    alike = draw.choice([0.0, 0.5, 1.0])
    experts = {
        role: alike * rng.standard_normal((1, *shape)) + rng.standard_normal((n, *shape))
        for role, shape in roles.items()
    }
    router, x = rng.standard_normal((n, hidden)), rng.standard_normal((count, hidden))
    if kind == "low rank":
        rank = draw.randint(1, hidden)
        x = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, hidden))
    if kind == "equal tokens":
        x[:] = x[0]
    if kind == "equal experts":
        experts = {role: np.repeat(matrices[:1], n, 0) for role, matrices in experts.items()}
    if kind == "unused":
        x[:, -1], router[: n // 2, -1] = 1, -1e3
    if kind == "zeros":
        experts[draw.choice(sorted(experts))][draw.randrange(n)] = 0
    if kind in ("a large token", "large"):
        x[: 1 if kind == "a large token" else None] *= 10.0 ** draw.randint(1, 6)
    if kind in ("large weights", "enormous weights"):
        power = draw.randint(1, 6) if kind == "large weights" else draw.randint(7, 30)
        experts[draw.choice(sorted(experts))][draw.randrange(n)] *= 10.0**power
    if kind == "overflow":
        x *= 1e30
    held = rng.random(count) < (0 if kind == "no held-out token" else 0.25)
    held[0] = False
    top_k = draw.randint(1, n)
    rule = Rule(draw.choice(["softmax", "sigmoid"]), top_k, draw.random() < 0.5, draw.choice([1.0, 2.5]))
    experts = {role: rounded(matrices, dtype) for role, matrices in experts.items()}
    act = draw.choice(["silu", "silu", "relu", "relu2"])
    return Layer(kind, experts, rounded(router, dtype), rule, rounded(x, dtype), held, act, dtype)


def tensor(array, dtype):
    return torch.from_numpy(array).to(dtype)


def remembered(one):
    index = np.argsort(-one.g, axis=1, kind="stable")[:, : one.rule.top_k]
    rows = {
        "hidden": tensor(one.x, one.dtype),
        "expert_index": torch.from_numpy(index),
        "expert_weight": tensor(np.take_along_axis(one.g, index, 1), torch.float32),
        "router_logits": tensor(one.x @ one.router.T, torch.float32),
        "sequence": torch.arange(len(one.x)),
    }
    return Remembered([rows], torch.from_numpy(one.held))
