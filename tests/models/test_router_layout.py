"""The rule of every known router against the routers of transformers, and a rule that a model does not follow."""

from dataclasses import replace

import architectures
import pytest
import torch
from transformers import AutoModelForCausalLM

from mergemoe.checkpoints.expert_weights import read_router
from mergemoe.checkpoints.router_headers import ROUTERS
from mergemoe.errors import UserError
from mergemoe.models import layout
from mergemoe.moe.router_rule import Router, check_rule, layer_router
from mergemoe.moe.tokens import Tokens

FAMILIES = [(name, {}) for name in sorted(ROUTERS)] + [
    ("qwen2_moe", {"norm_topk_prob": True}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("deepseek_v3", {"n_group": 4, "topk_group": 2, "norm_topk_prob": False}),
    ("glm4_moe", {"routed_scaling_factor": 1.5, "n_group": 2}),
]


@torch.no_grad()
def seen_in(name, changes, folder, monkeypatch):
    """Layers of a model in its own words, each with the tokens that its experts were given."""
    made = architectures.CONFIGS[name]()
    made.update(changes)
    monkeypatch.setitem(architectures.CONFIGS, name, lambda: made)
    path = architectures.save(name, folder)
    described = layout.describe_layout(path, digests=False)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    seen = {}
    for entry in described["layers"]:
        experts = model.get_submodule(entry["module"])
        experts.register_forward_pre_hook(lambda _, args, layer=entry["layer"]: seen.__setitem__(layer, args))
    model(torch.randint(3, 97, (4, 40), generator=torch.Generator().manual_seed(0)))
    for entry in described["layers"]:
        hidden, index, weight = seen[entry["layer"]]
        router = layer_router(entry, read_router(described, entry["layer"]))
        hidden = hidden.flatten(0, -2)
        yield router, Tokens(hidden, index, weight, hidden @ router.rows.T)


@pytest.mark.parametrize(("name", "changes"), FAMILIES, ids=lambda part: part if isinstance(part, str) else str(part))
def test_a_rule_gives_what_the_familys_own_router_does(name, changes, tmp_path, monkeypatch):
    for router, tokens in seen_in(name, changes, tmp_path, monkeypatch):
        expected = torch.zeros(len(tokens.index), 8).scatter_(1, tokens.index, tokens.weight)
        torch.testing.assert_close(router.weights(tokens.hidden), expected, rtol=1e-5, atol=1e-6)
        assert len(set(map(frozenset, tokens.index.tolist()))) > 5  # so there was a choice
        if router.bias is not None:
            assert not torch.equal(Router(router.rule, router.rows).weights(tokens.hidden) != 0, expected != 0)


@pytest.mark.parametrize(
    "wrong",
    [{"normalized": True}, {"scaling": 1.0}, {"scores": "softmax"}, {"top_k": 2}, {"groups": 1}, {"bias": None}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_model_that_does_not_choose_by_the_rule_is_refused(wrong, tmp_path, monkeypatch):
    changes = {"n_group": 4, "topk_group": 2, "norm_topk_prob": False}
    router, tokens = next(seen_in("deepseek_v3", changes, tmp_path, monkeypatch))
    check_rule(router, tokens)
    rounded = [part.bfloat16().float() for part in (tokens.weight, tokens.logits)]
    check_rule(router, Tokens(tokens.hidden, tokens.index, *rounded))
    bias, rule = wrong.get("bias", router.bias), {name: value for name, value in wrong.items() if name != "bias"}
    with pytest.raises(UserError, match=r"\d\.\d% of the\s+routing weight differs"):
        check_rule(Router(replace(router.rule, **rule), router.rows, bias), tokens)
