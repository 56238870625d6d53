"""The exact weighted output of a group: neuron by neuron, and as a model against a slow forward."""

import copy

import architectures
import problems
import pytest
import torch
import yaml
from problems import merge
from tiny_project import ROOT
from transformers import AutoModelForCausalLM

import mergemoe
from mergemoe.checkpoints import cost
from mergemoe.methods import oracle, routed
from mergemoe.moe.expert_forward import RULES, Activation, features
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import plan


@pytest.mark.parametrize("case", [{}, {"gated": False}, {"biased": True}], ids=["gated", "un-gated", "biases"])
def test_a_group_puts_out_the_weighted_mean_of_its_members_outputs(case):
    problem = problems.problem(expert_map=(0, 0, 1, 0, 1, 2), **case)
    results = oracle.merge(problem)
    assert [result.group for result in results] == problem.groups  # the width is one for all
    for result in results:
        group = result.group
        assert result.expert.up.shape == (1, 15, 7) and result.expert.down.shape == (1, 7, 15)
        for x, _ in list(problems.each_token(problem, heldout=True))[:10]:
            parts = zip(group.weights.tolist(), group.members, strict=True)
            expected = sum(w * problems.output(problem.experts, j, x) for w, j in parts)
            torch.testing.assert_close(problems.output(result.expert, 0, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_neurons_that_only_fill_up_have_no_feature(rule):
    problem = problems.problem()
    wide = oracle.padded(problem.experts[:1], 8)
    act = Activation("silu", rule, limit=1.0)
    h = features(torch.randn(20, 7, dtype=torch.float64), wide, 0, act)
    assert h[:, :5].any(0).all() and not h[:, 5:].any()
    assert not wide.down[:, :, 5:].any()


@pytest.mark.parametrize("method", [oracle, routed])
def test_a_layer_whose_groups_are_all_single_stays(method):
    assert merge(method, problems.problem(expert_map=range(6))) == []


@pytest.mark.parametrize(("experts", "exact"), [(1, True), (3, False)])
def test_a_plan_counts_it_as_if_all_groups_were_equal(experts, exact, tiny, tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    changes = {
        "model": {"tiny": {"path": str(tiny)}},
        "cluster": {"few": {"by": "weights", "experts": experts}},
        "solve": {"oracle": {"method": "oracle"}},
    }
    params = read_params({**params, **changes, "runs": "all"})
    planned = plan.run_size(params, params.all_runs()[0])
    ids = torch.randint(3, 4096, (6, 16), generator=torch.Generator().manual_seed(2))
    mergemoe.save(
        mergemoe.compress(mergemoe.load(tiny, "cpu"), ids, experts=experts, method="oracle"), tmp_path / "one"
    )
    counted = cost.count_cost(tmp_path / "one")
    assert planned["bytes"] == counted["bytes"] if exact else planned["bytes"] < counted["bytes"]
    assert planned["bytes"] >= cost.count_cost(tiny)["bytes"]
    assert "oracle is larger, the more unequal" in plan.plan_text(params, tmp_path)


def weighted(expert_map, usage):
    """A forward of an experts module in which each choice puts out what its group does, expert by expert."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        y = torch.zeros_like(hidden_states)
        for token, (x, chosen, g) in enumerate(zip(hidden_states, top_k_index.tolist(), top_k_weights, strict=True)):
            for expert, weight in zip(chosen, g, strict=True):
                members = [j for j in range(8) if expert_map[self][j] == expert_map[self][expert]]
                for j in members:
                    gate, up = (self.gate_up_proj[j] @ x).chunk(2)
                    share = usage[self][j] / sum(usage[self][k] for k in members)
                    y[token] += weight * share * (self.down_proj[j] @ (self.act_fn(gate) * up))
        return y

    return forward


@torch.no_grad()
def test_a_model_computes_what_a_forward_with_weighted_outputs_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = architectures.save("qwen3_moe", tmp_path / "full")
    ids = torch.randint(3, 97, (8, 24), generator=torch.Generator().manual_seed(2))
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, experts_implementation="eager")
    model = mergemoe.compress(copy.deepcopy(reference), ids, experts=3, method="oracle", holdout=0.0)
    modules, usage, expert_map = [layer.mlp.experts for layer in reference.model.layers[1:]], {}, {}

    def count(module, args):
        usage[module] = torch.bincount(args[1].flatten(), minlength=8).tolist()

    hooks = [module.register_forward_pre_hook(count) for module in modules]
    full = reference(ids).logits
    for hook in hooks:
        hook.remove()
    for module, layer in zip(modules, model.model.layers[1:], strict=True):
        expert_map[module] = layer.mlp.experts.expert_map.tolist()
        sizes = layer.mlp.experts.expert_map.bincount().tolist()
        assert layer.mlp.experts.down_proj.shape == (3, 32, 24 * max(sizes)) and min(sizes) < max(sizes)
    with monkeypatch.context() as patch:
        patch.setattr(type(modules[0]), "forward", weighted(expert_map, usage))
        expected = reference(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert (expected - full).abs().max() > 0.1
    mergemoe.save(model, tmp_path / "saved_oracle")
    for loaded in (
        mergemoe.load(tmp_path / "saved_oracle", "cpu", torch.float32),
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved_oracle", trust_remote_code=True),
    ):
        loaded.set_experts_implementation("eager")
        assert torch.equal(loaded(ids).logits, model(ids).logits)
