"""What others attach to a model: hooks go on working, all else is refused before anything is computed."""

import copy

import accelerate
import architectures
import pytest
import torch
import transformers
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules
from by_stages import drawn
from torch.nn.utils import parametrize, prune
from transformers import AutoModelForCausalLM

import mergemoe
from mergemoe.errors import UserError

REROUTED = [("reap", {}), ("joint", {"routing": "pruned"}), ("joint", {"routing": "folded"})]
IDS = torch.randint(3, 97, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return lambda name: folder / name if (folder / name).exists() else architectures.save(name, folder / name)


def experts(model):
    return model.model.layers[1].mlp.experts


def router(model):
    return model.model.layers[1].mlp.gate


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("method", "options"), [*REROUTED, ("average", {}), ("slim", {"width": 0.5})])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "olmoe", "qwen2_moe"])
def test_router_logits_and_the_auxiliary_loss_work_and_can_be_trained(name, method, options, before, saved, tmp_path):
    model = mergemoe.load(saved(name), "cpu", torch.float32)
    model.config.output_router_logits = before
    mergemoe.compress(model, drawn(), experts=None if method == "slim" else 4, method=method, **options)
    model.config.output_router_logits = True
    found = model(IDS, labels=IDS)
    rows = 8 if method in ("average", "slim") else 4
    assert {logits.shape[-1] for logits in found.router_logits} == {rows}
    model.save_pretrained(tmp_path / "saved")
    again = mergemoe.load(tmp_path / "saved", "cpu")
    expected = again(IDS, labels=IDS, output_router_logits=True)
    torch.testing.assert_close(found.aux_loss, expected.aux_loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-5)
    weight = next(module for key, module in model.named_parameters() if key.endswith("gate.weight"))
    model.train()(IDS, labels=IDS).aux_loss.backward()
    assert weight.grad.abs().sum() > 0
    with torch.no_grad():
        torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize(("method", "options"), [*REROUTED, ("average", {})])
def test_hooks_of_a_user_go_on_working(method, options, saved):
    model = mergemoe.load(saved("qwen3_moe"), "cpu", torch.float32)
    calls = []
    for module in (experts(model), router(model)):
        module.register_forward_hook(lambda m, args, kwargs, output: calls.append("after"), with_kwargs=True)
        module.register_forward_pre_hook(lambda m, args: calls.append("before"))
        module.register_full_backward_hook(lambda m, grads, outputs: calls.append("back"))
        module.register_state_dict_post_hook(lambda m, state, prefix, metadata: calls.append("state"))
    kept = experts(model), router(model)
    mergemoe.compress(model, drawn(), experts=4, method=method, **options)
    assert (experts(model), router(model)) == kept
    calls.clear()
    model(IDS).logits.sum().backward()
    assert sorted(calls) == ["after"] * 2 + ["back"] * 2 + ["before"] * 2
    model.state_dict()
    assert calls.count("state") == 2


@pytest.mark.parametrize(("method", "options"), [*REROUTED, ("average", {})])
def test_frozen_experts_stay_frozen_and_dtypes_stay(method, options, saved):
    model = mergemoe.load(saved("deepseek_v3"), "cpu", torch.bfloat16)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {key: tensor.dtype for key, tensor in model.state_dict().items()}
    if options.get("routing") == "folded":
        options = {"routing": "pruned"}
    mergemoe.compress(model, drawn(), experts=6, method=method, **options)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    after = {key: tensor.dtype for key, tensor in model.state_dict().items()}
    assert {key: dtype for key, dtype in after.items() if key in before} == before


def dispatched(model):
    accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)


def one_hook(model):
    add_hook_to_module(model.model.layers[1], AlignDevicesHook("cpu"))


def offloaded(model):
    accelerate.cpu_offload(model, "cpu")


def pruned_weights(model):
    prune.l1_unstructured(router(model), "weight", 0.5)


def shared(model):
    model.model.layers[2].mlp.experts.down_proj = experts(model).down_proj


def shared_module(model):
    model.model.layers[2].mlp.experts = experts(model)


def wrapped(model):
    model.model.layers[1].mlp.gate = Mine(router(model))


class Mine(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, *args):
        return self.inner(*args)


def quantized(model):
    torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def _cast(model, dtype):
    layer = model.model.layers[1].self_attn.q_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(dtype), requires_grad=False)


ATTACHED = {
    "dispatch": (dispatched, "has a `forward` of its own"),
    "a hook of accelerate on a layer": (one_hook, "model.layers.1 has a `forward` of its own"),
    "offload": (offloaded, "has a `forward` of its own"),
    "meta": (lambda model: router(model).to("meta"), "gate.weight has no numbers in memory"),
    "a buffer on meta": (
        lambda model: model.model.layers[1].register_buffer("table", torch.empty(3, device="meta")),
        "layers.1.table has no numbers in memory",
    ),
    "compile": (lambda model: model.compile(backend="eager"), "the model is compiled"),
    "compiled layer": (lambda model: model.model.layers[1].compile(backend="eager"), "layers.1 is compiled"),
    "parametrized router": (
        lambda model: parametrize.register_parametrization(router(model), "weight", torch.nn.Identity()),
        "mlp.gate is parametrized",
    ),
    "parametrized experts": (
        lambda model: parametrize.register_parametrization(experts(model), "down_proj", torch.nn.Identity()),
        "mlp.experts is parametrized",
    ),
    "pruned router": (pruned_weights, "mlp.gate is parametrized"),
    "gradient hook": (
        lambda model: experts(model).down_proj.register_hook(lambda grad: grad),
        "down_proj has hooks on its gradient",
    ),
    "accumulated gradient": (
        lambda model: experts(model).down_proj.register_post_accumulate_grad_hook(lambda parameter: None),
        "down_proj has hooks on its gradient",
    ),
    "tied": (shared, "down_proj belongs to 2 modules"),
    "tied modules": (shared_module, "belongs to 2 modules"),
    "wrapped router": (wrapped, "no stock module"),
    "quantized modules": (quantized, "is quantized in memory .Linear."),
    "quantized weights": (lambda model: _cast(model, torch.float8_e4m3fn), "is quantized in memory .float8_e4m3fn."),
    "whole numbers": (lambda model: _cast(model, torch.int8), "is quantized in memory .int8."),
    "adapters": (lambda model: setattr(model, "_hf_peft_config_loaded", True), "adapters of peft"),
}


@pytest.mark.parametrize("name", ATTACHED)
def test_what_would_be_lost_is_refused_before_anything_is_computed(name, saved, monkeypatch):
    model = mergemoe.load(saved("qwen3_moe"), "cpu", torch.float32)
    attach, words = ATTACHED[name]
    attach(model)
    monkeypatch.setattr(type(model.model), "forward", None)
    with pytest.raises(UserError, match=words):
        mergemoe.compress(model, drawn(), method="reap")
    assert model.config.num_experts == 8


def test_the_ways_out_work(saved):
    plain = mergemoe.compress(mergemoe.load(saved("qwen3_moe"), "cpu", torch.float32), drawn(), method="reap")
    hooked = mergemoe.load(saved("qwen3_moe"), "cpu", torch.float32)
    dispatched(hooked)
    parametrize.register_parametrization(router(hooked), "weight", torch.nn.Identity())
    remove_hook_from_submodules(hooked)
    parametrize.remove_parametrizations(router(hooked), "weight")
    mergemoe.compress(hooked, drawn(), method="reap")
    mapped = AutoModelForCausalLM.from_pretrained(saved("qwen3_moe"), device_map="auto", dtype=torch.float32).cpu()
    mergemoe.compress(mapped, drawn(), method="reap")
    copied = copy.deepcopy(mergemoe.load(saved("qwen3_moe"), "cpu", torch.float32))
    mergemoe.compress(copied, drawn(), method="reap").compile(backend="eager")
    for model in (hooked, mapped, copied):
        torch.testing.assert_close(model.eval()(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("part", ["layer", "experts", "one matrix"])
def test_a_layer_in_another_dtype_is_refused(part, saved):
    model = mergemoe.load(saved("qwen3_moe"), "cpu", torch.float32)
    if part == "one matrix":
        experts(model).down_proj = torch.nn.Parameter(experts(model).down_proj.detach().half())
    else:
        (model.model.layers[1] if part == "layer" else experts(model)).half()
    with pytest.raises(UserError, match=r"_proj is in float16 and model.layers.2.mlp.experts.\w+ in float32: a "):
        mergemoe.compress(model, drawn(), experts=4)


@pytest.mark.parametrize("name", ["GPT2", "GPTJ", "Bloom"])
def test_a_model_without_experts_or_known_layers_is_refused(name):
    config = getattr(transformers, f"{name}Config")(vocab_size=97, n_embd=16, n_layer=2, n_head=2, rotary_dim=4)
    with pytest.raises(UserError, match=f"{name}.* keeps no layers under a name that this version knows"):
        mergemoe.compress(AutoModelForCausalLM.from_config(config), IDS, experts=4)
