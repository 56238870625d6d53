"""DeepSeekMoE V1 read as qwen2_moe, against a forward pass written out from its paper (arXiv 2401.06066)."""

import math

import pytest
import torch
from accelerate import init_empty_weights
from deepseek_checkpoint import CONFIG, random_checkpoint
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock, Qwen2MoeTopKRouter

from mergemoe.errors import UserError
from mergemoe.models.deepseek import convert_deepseek, qwen2_moe_config


def forward(w, config, ids, mask):
    """Logits of DeepSeekMoE in float64, one token and one expert at a time; [L] ids, [L] mask of one sequence."""
    h, heads, eps = config["hidden_size"], config["num_attention_heads"], config["rms_norm_eps"]
    size = h // heads
    shared_by = heads // config["num_key_value_heads"]
    positions = torch.arange(len(ids), dtype=torch.float64)
    angle = positions[:, None] / config["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)

    def norm(x, name):
        return w[name] * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    def rotate(x):  # pairs (i, i + size/2)
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def silu(x):
        return x / (1 + torch.exp(-x))

    def mlp(x, name):
        return w[f"{name}.down_proj.weight"] @ (
            silu(w[f"{name}.gate_proj.weight"] @ x) * (w[f"{name}.up_proj.weight"] @ x)
        )

    def moe(x, name):
        scores = torch.softmax(w[f"{name}.gate.weight"] @ x, 0)
        best = sorted(range(len(scores)), key=lambda e: -scores[e])[: config["num_experts_per_tok"]]
        normalized = config["norm_topk_prob"] and len(best) > 1
        weight = scores / sum(scores[e] for e in best) if normalized else scores
        return sum(weight[e] * mlp(x, f"{name}.experts.{e}") for e in best) + mlp(x, f"{name}.shared_experts")

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        normed = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = (normed @ w[f"{at}.self_attn.{p}_proj.weight"].T for p in "qkv")
        mixed = torch.zeros_like(x)
        for head in range(heads):
            own, other = slice(head * size, (head + 1) * size), head // shared_by
            theirs = slice(other * size, (other + 1) * size)
            score = rotate(q[:, own]) @ rotate(k[:, theirs]).T / math.sqrt(size)
            allowed = torch.ones(len(ids), len(ids)).tril().bool() & mask.bool()[None, :]
            mixed[:, own] = torch.softmax(score.masked_fill(~allowed, -1e300), -1) @ v[:, theirs]
        x = x + mixed @ w[f"{at}.self_attn.o_proj.weight"].T
        normed = norm(x, f"{at}.post_attention_layernorm.weight")
        unit = mlp if i < config["first_k_dense_replace"] else moe
        x = x + torch.stack([unit(row, f"{at}.mlp") for row in normed])
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


class Float64(TorchFunctionMode):
    """Stock code computes norms, router and rotary tables in float32 whatever the dtype: here in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = [torch.float64 if a is torch.float32 else a for a in args]
        kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in (kwargs or {}).items()}
        return func(*args, **kwargs)


def read_natively(tmp_path, config=CONFIG, dtype=torch.float32, **settings):
    """Return the stock model of a random checkpoint, and the checkpoint's own tensors in float64."""
    folder = random_checkpoint(tmp_path / "v1", config, dtype)
    convert_deepseek(folder, tmp_path / "native")
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "native", dtype="auto", output_loading_info=True, **settings
    )
    assert type(model) is Qwen2MoeForCausalLM
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    weights = {key: tensor.double() for key, tensor in load_file(folder / "model.safetensors").items()}
    return model.eval(), weights


def batch():
    """Three sequences: whole, padded behind, padded before."""
    ids = torch.randint(3, 97, (3, 14), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    mask[2, :4] = 0
    return ids, mask


def largest_difference(model, weights, config, ids, mask):
    found = model(input_ids=ids, attention_mask=mask).logits.double()
    differences = [
        (found[row] - forward(weights, config, ids[row], mask[row]))[mask[row].bool()].abs().max() for row in range(3)
    ]
    return float(torch.stack(differences).max())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2, "norm_topk_prob": True},
        {"num_experts_per_tok": 1, "norm_topk_prob": True},
        {"first_k_dense_replace": 2, "n_shared_experts": 1, "rope_theta": 500.0},
    ],
    ids=["v1", "grouped", "one expert", "two dense"],
)
@torch.no_grad()
def test_the_arithmetic_is_that_of_the_paper(tmp_path, changes):
    config = {**CONFIG, **changes}
    with Float64():
        model, weights = read_natively(tmp_path, config, experts_implementation="eager")
        assert largest_difference(model.double(), weights, config, *batch()) < 1e-10


@pytest.mark.parametrize("kernel", ["eager", "batched_mm", "grouped_mm"])
@torch.no_grad()
def test_the_stock_model_agrees_to_float32_with_every_kernel(tmp_path, kernel):
    model, weights = read_natively(tmp_path, experts_implementation=kernel)
    assert largest_difference(model, weights, CONFIG, *batch()) < 1e-5


@torch.no_grad()
def test_greedy_generation_follows_the_paper(tmp_path):
    model, weights = read_natively(tmp_path)
    ids = batch()[0][:1, :6]
    expected = ids[0]
    for _ in range(5):
        best = forward(weights, CONFIG, expected, torch.ones_like(expected))[-1].argmax()
        expected = torch.cat([expected, best[None]])
    written = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None)
    assert written[0].tolist() == expected.tolist()


@torch.no_grad()
def test_routing_weights_are_the_softmax_over_all_experts_and_do_not_add_up_to_one(tmp_path):
    model, weights = read_natively(tmp_path)
    x = torch.randn(40, CONFIG["hidden_size"], generator=torch.Generator().manual_seed(2))
    _, found, chosen = model.model.layers[1].mlp.gate(x)
    scores = torch.softmax(x.double() @ weights["model.layers.1.mlp.gate.weight"].T, -1)
    torch.testing.assert_close(found.double(), scores.gather(1, chosen), rtol=1e-6, atol=0)
    assert chosen.shape == (40, 6) and (found.sum(-1) < 0.95).all()


def test_a_tie_in_bfloat16_changes_no_routing_weight():
    config = Qwen2MoeConfig(**qwen2_moe_config(CONFIG))
    router = Qwen2MoeTopKRouter(config).bfloat16()
    g = torch.Generator().manual_seed(3)
    router.weight.data.normal_(0, 0.2, generator=g)
    x = torch.randn(2000, config.hidden_size, generator=g).bfloat16()
    logits, found, chosen = router(x)
    published = logits.softmax(-1).sort(descending=True).values  # in bfloat16, as the published code has it
    assert (published[:, 5] == published[:, 6]).any()
    assert torch.equal(found.sort(descending=True).values, published[:, :6])
    assert torch.equal(found, logits.softmax(-1).gather(1, chosen))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_the_gate_of_the_shared_experts_is_one_half_to_the_bit(tmp_path, dtype):
    model, weights = read_natively(tmp_path, {**CONFIG, "torch_dtype": str(dtype).removeprefix("torch.")}, dtype)
    block, name = model.model.layers[1].mlp, "model.layers.1.mlp.shared_experts"
    assert isinstance(block, Qwen2MoeSparseMoeBlock) and block.shared_expert_gate.weight.dtype == dtype
    x = torch.randn(50, CONFIG["hidden_size"], generator=torch.Generator().manual_seed(4)).to(dtype)
    found = torch.sigmoid(block.shared_expert_gate(x)) * block.shared_expert(x)
    block.shared_expert.down_proj.weight.copy_(weights[f"{name}.down_proj.weight"])
    assert torch.equal(found, block.shared_expert(x))


def test_only_the_shared_experts_tensors_change(tmp_path):
    folder = random_checkpoint(tmp_path / "v1", dtype=torch.bfloat16)
    convert_deepseek(folder, tmp_path / "native")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "native"))
    for key, tensor in before.items():
        name = key.replace("shared_experts", "shared_expert")
        doubled = 2 if "shared_experts.down" in key else 1
        assert torch.equal(after.pop(name), tensor * doubled)
    assert sorted(after) == [f"model.layers.{i}.mlp.shared_expert_gate.weight" for i in (1, 2)]
    assert all(not tensor.any() for tensor in after.values())


def test_saving_the_stock_model_keeps_names_and_bytes(tmp_path):
    model, _ = read_natively(tmp_path)
    model.save_pretrained(tmp_path / "saved")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("native", "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_published_size_is_a_model_of_its_parameter_count():
    published = {"vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408}
    published |= {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16}
    with init_empty_weights():
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**qwen2_moe_config({**CONFIG, **published})))
    mlp = 3 * 2048
    moe = 27 * (64 * mlp * 1408 + mlp * 2 * 1408 + 64 * 2048)
    rest = 2 * 102400 * 2048 + 28 * 4 * 2048**2 + mlp * 10944 + 57 * 2048
    assert moe + rest == 16_375_728_128  # the paper's 16.4 billion
    assert model.num_parameters() == moe + rest + 27 * 2048  # and the gates of the shared experts


@pytest.mark.parametrize(
    "changes",
    [
        {"scoring_func": "sigmoid"},
        {"moe_layer_freq": 2},
        {"attention_bias": True},
        {"pretraining_tp": 2},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"n_shared_experts": None},
        {"n_routed_experts": None},
        {"num_experts_per_tok": None},
        {"routed_scaling_factor": 2.5},
        {"topk_method": "group_limited_greedy"},
        {"head_dim": 16},
        {"sliding_window": 64},
    ],
    ids=str,
)
def test_what_the_class_does_not_compute_is_refused_by_name(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        qwen2_moe_config({**CONFIG, **changes})


@pytest.mark.parametrize("key", ["num_experts_per_tok", "num_key_value_heads", "rms_norm_eps", "torch_dtype"])
def test_a_missing_size_is_asked_for_and_never_taken_from_another_family(key):
    with pytest.raises(UserError, match=key):
        qwen2_moe_config({k: v for k, v in CONFIG.items() if k != key})
