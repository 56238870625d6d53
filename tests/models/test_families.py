"""What the families of experts differ in, one by one: gates, biases, stored forms, identity experts, refusals."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import architectures
import numpy as np
import pytest
import torch
import transformers
from problems import merge
from safetensors.torch import load_file, save_file

import mergemoe as library
from mergemoe.calibration.hooks import Recorder
from mergemoe.calibration.profile import profile_layer
from mergemoe.checkpoints.expert_weights import read_experts
from mergemoe.checkpoints.model_folder import shard_files
from mergemoe.errors import UserError
from mergemoe.methods import average, mergemoe
from mergemoe.models import layout
from mergemoe.models.activation_rule import activation_of
from mergemoe.models.families import REFUSED, experts_modules, family_of, stacked_parameter
from mergemoe.models.layered_model import ResidentModel
from mergemoe.models.layerwise_forward import LayerwiseForward
from mergemoe.moe.expert_forward import Activation, routed_output
from mergemoe.moe.experts import Experts
from mergemoe.moe.problem import Problem, groups_of
from mergemoe.moe.tokens import Remembered

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "models.md"
MODELS = Path(transformers.__file__).parent / "models"
MAP, USAGE = [0, 0, 1, 2, 2, 2, 3, 1], [3, 1, 4, 1, 5, 9, 2, 6]
SIZES = dict(hidden_size=8, moe_hidden_size=8, intermediate_size=6, moe_intermediate_size=6)
COUNTS = dict(num_experts=4, num_local_experts=4, n_routed_experts=4)


def modules_with(*texts):
    """Return the modules of transformers whose source holds any of some texts."""
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        source = path.read_text()
        if any(text in source for text in texts):
            yield importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")


def own_gates():
    """Return all classes of transformers that say themselves how gate and up make a feature."""
    for module in modules_with("def _apply_gate"):
        for cls in vars(module).values():
            if getattr(getattr(cls, "_apply_gate", None), "__module__", None) == module.__name__:
                yield cls


@torch.no_grad()
def test_every_gate_that_a_class_computes_itself_is_computed_alike_or_its_class_refused():
    config = SimpleNamespace(
        **SIZES, **COUNTS, hidden_act="silu", swiglu_limit=1.5, swiglu_alpha=1.3, _experts_implementation="eager"
    )
    generator = torch.Generator().manual_seed(0)
    rules = {}
    for cls in own_gates():
        if cls.__name__ in REFUSED:
            continue
        module = cls(config).eval()
        if hasattr(module, "limit"):
            module.limit = 1.5
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        family = family_of(module)
        roles = {role: how.view(stacked_parameter(module, name, 4), 4) for role, (name, how) in family.roles.items()}
        act = activation_of("experts", module, family)
        x = torch.randn(40, 8, generator=generator)
        index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in x])
        weight = torch.rand(40, 2, generator=generator)
        found = routed_output(x, index, weight, Experts(**roles), act)
        torch.testing.assert_close(found, module(x, index, weight), rtol=1e-5, atol=1e-4, msg=cls.__name__)
        rules[cls.__name__] = act.rule
    assert rules == {
        "BeamExperts": "plain",
        "DeepseekV4Experts": "clamped",
        "Glm5NextTextExperts": "clamped",
        "GptOssExperts": "shifted",
        "HYV4Experts": "clamped",
        "MiniMaxM3VLExperts": "shifted",
        "OpenAIPrivacyFilterExperts": "shifted",
        "Step3p7Experts": "clamped_after",
    }


def test_refusals_name_the_class_and_the_reason():
    sources = modules_with(*(f"class {name}(" for name in REFUSED))
    classes = {name: cls for module in sources for name, cls in vars(module).items() if name in REFUSED}
    assert classes.keys() == REFUSED.keys()
    for name, cls in classes.items():
        with pytest.raises(UserError) as refused:
            family_of(cls.__new__(cls))
        assert name in str(refused.value) and REFUSED[name] in str(refused.value)


@pytest.mark.parametrize(("name", "cls"), [("doge", "DogeCDMoE"), ("inkling2_text", "Inkling2Experts")])
def test_a_checkpoint_that_cannot_be_merged_is_refused_with_the_reason(name, cls, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(architectures.REFUSED[name]().to_dict()))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"{cls} cannot be merged: {REFUSED[cls]}"):
        layout.describe_layout(tmp_path, digests=False)


def test_layers_that_read_more_of_those_before_them_than_hidden_states_are_noticed():
    config = architectures.REFUSED["inkling2_text"]()
    model = transformers.Inkling2ForCausalLM(config).eval()
    batch = {"input_ids": torch.arange(3, 27).view(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}
    with pytest.raises(UserError, match="Inkling2TextModel: a layer reads more from earlier layers"):
        next(LayerwiseForward(ResidentModel(model), [batch]).layers())


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """The experts of a layer with biases, their activation, and tokens to fit."""
    described = layout.describe_layout(architectures.save("gpt_oss", tmp_path_factory.mktemp("gpt_oss")), digests=False)
    entry = described["layers"][1]
    generator = torch.Generator().manual_seed(3)
    n = 400
    rows = {
        "hidden": torch.randn(n, 32, generator=generator),
        "expert_index": torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(n)]),
        "expert_weight": torch.rand(n, 3, generator=generator),
        "router_logits": torch.randn(n, 8, generator=generator),
        "sequence": torch.arange(n) // 100,
    }
    tokens = Remembered([rows], torch.tensor([0, 0, 0, 1]))
    experts = read_experts(described, entry["layer"])
    act = Activation(**entry["activation"])
    return Problem(experts, groups_of(MAP, USAGE), tokens, act), rows["hidden"][:300].double().numpy()


def test_a_bias_behind_the_down_projection_is_solved_as_the_weight_of_a_feature_that_is_1(gpt_oss):
    problem, x = gpt_oss
    w = {role: matrices.double().numpy() for role, matrices in problem.experts.roles().items()}
    limit, alpha = problem.act.limit, problem.act.alpha

    def features(gate, gate_bias, up, up_bias):
        g = np.minimum(x @ gate.T + gate_bias, limit)
        return g / (1 + np.exp(-alpha * g)) * (np.clip(x @ up.T + up_bias, -limit, limit) + 1)

    for group, merged in zip(problem.merged_groups, merge(mergemoe, problem), strict=True):
        share = group.weights.numpy()
        first = ("gate", "gate_bias", "up", "up_bias")
        mean = {role: np.tensordot(share, w[role][group.members], 1) for role in first}
        p = features(*mean.values())
        y = sum(
            f * (features(*(w[role][j] for role in first)) @ w["down"][j].T + w["down_bias"][j])
            for f, j in zip(share, group.members, strict=True)
        )
        solved = np.linalg.lstsq(np.hstack([p, np.ones((len(p), 1))]), y, rcond=None)[0].T
        for role, matrix in mean.items():
            np.testing.assert_allclose(merged.expert.roles()[role][0], matrix, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(merged.expert.down[0], solved[:, :-1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(merged.expert.down_bias[0], solved[:, -1], rtol=1e-4, atol=1e-5)
        averaged = np.tensordot(share, w["down_bias"][group.members], 1)
        assert np.abs(solved[:, -1] - averaged).max() > 0.1  # no mean of biases would do


def test_plain_averages_are_those_of_the_biases_too(gpt_oss):
    problem = gpt_oss[0]
    for group, merged in zip(problem.merged_groups, average.merge(problem), strict=True):
        roles = problem.experts.roles()
        assert roles.keys() == {"gate", "up", "down", "gate_bias", "up_bias", "down_bias"}
        for role, matrices in roles.items():
            expected = np.mean([matrices[j].double().numpy() for j in group.members], 0)
            np.testing.assert_allclose(merged.expert.roles()[role][0], expected, rtol=1e-12, atol=1e-14)


@torch.no_grad()
def test_experts_that_give_their_input_back_are_never_merged_and_never_counted(tmp_path):
    folder = architectures.save("longcat_flash", tmp_path / "full")
    described = layout.describe_layout(folder, digests=False)
    model = library.load(folder, "cpu", torch.float32)
    ids = torch.randint(3, 97, (8, 24), generator=torch.Generator().manual_seed(1))
    for entry in described["layers"]:
        assert (entry["experts"], entry["identity"]) == (8, 2)
        chosen = []
        recorder = Recorder(model, entry)
        handle = model.get_submodule(entry["module"]).register_forward_pre_hook(
            lambda _, args, chosen=chosen: chosen.append(args[1])
        )
        model(ids)
        handle.remove()
        rows = recorder.rows(torch.ones_like(ids), 0)
        recorder.remove()
        usage = profile_layer(
            Remembered([rows], torch.zeros(8)),
            read_experts(described, entry["layer"]),
            Activation(**entry["activation"]),
        )["usage"]
        assert usage == torch.bincount(chosen[0].flatten(), minlength=10)[:8].tolist()
        assert sum(usage) < chosen[0].numel()  # some tokens did choose them
    merged = library.compress(model, ids, experts=4, method="average")
    library.save(merged, tmp_path / "compact")
    before, after = (
        {key: tensor for path in shard_files(where) for key, tensor in load_file(path).items()}
        for where in (folder, tmp_path / "compact")
    )
    for entry in described["layers"]:
        assert after[entry["expert_map"]["key"]].tolist()[8:] == [4, 5]
        for role in ("gate", "up", "down"):
            for i, key in enumerate(entry["roles"][role]["identity"]):
                assert torch.equal(after[entry["roles"][role]["keys"][4 + i]], before[key])


def test_experts_stored_transposed_are_read_as_those_that_are_not(tmp_path):
    """As the published qwen3_vl_moe checkpoints store them, unlike what transformers saves."""
    folder = architectures.save("qwen3_vl_moe", tmp_path)
    plain = layout.describe_layout(folder, digests=False)
    expected = read_experts(plain, 1)
    for path in shard_files(folder):
        turned = ("experts.gate_up_proj", "experts.down_proj")
        tensors = {
            key: tensor.transpose(1, 2).contiguous() if key.endswith(turned) else tensor
            for key, tensor in load_file(path).items()
        }
        save_file(tensors, path, {"format": "pt"})
    described = layout.describe_layout(folder, digests=False)
    assert described["layers"][1]["roles"]["gate"]["stored"]["transposed"]
    found = read_experts(described, 1)
    for role, matrices in expected.roles().items():
        assert torch.equal(found.roles()[role], matrices)
    model = library.load(folder, "cpu", torch.float32)
    (module, family) = experts_modules(model)[described["layers"][1]["module"]]
    for role, (name, how) in family.roles.items():
        assert torch.equal(how.view(module.get_parameter(name), 8), expected.roles()[role])


def names_in(section):
    """Return what stands in the first column of a section's table."""
    text = DOCS.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:]
    return [name.strip().strip("`") for row in rows for name in row.split(",")]


def test_the_documentation_lists_the_families_that_are_tested_and_those_that_are_refused():
    assert sorted(names_in("Families that are tested")) == sorted(architectures.CONFIGS)
    text = DOCS.read_text()
    for name, reason in REFUSED.items():
        assert f"`{name}` | {reason} |" in text
