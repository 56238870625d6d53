"""Every architecture: streamed, described, computed, compressed, saved and loaded as transformers would have it."""

import copy
import gc
import importlib
import json
import shutil
from functools import cached_property

import architectures
import hypothesis
import pytest
import torch
import transformers
from hypothesis import strategies
from random_groups import random_groups
from safetensors.torch import load_file

import mergemoe
from mergemoe.calibration.activation_file import Reader
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.calibration.hooks import Recorder
from mergemoe.checkpoints.expert_weights import read_expert_map, read_experts
from mergemoe.checkpoints.model_folder import shard_files
from mergemoe.compressed.assemble import assemble
from mergemoe.evaluation.fidelity import logits_function
from mergemoe.models import layout
from mergemoe.models.families import auto_class, experts_modules
from mergemoe.models.layered_model import LayeredModel
from mergemoe.models.layerwise_forward import final_hidden
from mergemoe.models.stacks import layer_stacks
from mergemoe.moe.expert_forward import Activation, routed_output
from mergemoe.moe.packing import Stacking
from mergemoe.moe.solved import compact_experts

CPU = torch.device("cpu")
KERNELS = ("batched_mm", "grouped_mm", "eager")


UNREAD = {"dots3_note_text"}  # transformers converts its experts for the stock bare class alone, by its name


class Made:
    """One architecture's checkpoint and what the workflow makes of it; models are shared, so leave them as they are."""

    def __init__(self, name, folder):
        self.name = name
        self.path = architectures.save(name, folder / "full")
        self.layout = layout.describe_layout(self.path, digests=False)
        self.solved = {entry["layer"]: random_groups(self.layout, entry) for entry in self.layout["layers"]}
        self.compact = folder / f"compact_{name}"
        assemble(self.layout, self.solved, self.compact, shard_bytes=60_000)
        config = json.loads((self.compact / "config.json").read_text())
        self.auto = getattr(transformers, auto_class(config["mergemoe"]["class"]))

    @cached_property
    def stock(self):
        """The stock model, whole."""
        return set_kernel(mergemoe.load(self.path, "cpu", torch.float32), "eager")

    @cached_property
    def merged(self):
        """The compressed model."""
        return mergemoe.load(self.compact, "cpu", torch.float32)

    @cached_property
    def expanded(self):
        """The stock model with each expert's weights replaced by its group's."""
        model = copy.deepcopy(self.stock)
        for name, (module, family) in experts_modules(model).items():
            entry = next(entry for entry in self.layout["layers"] if entry["module"] == name)
            tensors = self.solved[entry["layer"]]
            for role, (parameter, held) in family.roles.items():
                whole = module.get_parameter(parameter).data
                spare = entry["roles"][role]["spare"]
                view = held.view(whole[: len(whole) - spare], entry["experts"])
                for row, group in enumerate(tensors["groups"].tolist()):
                    for expert in torch.where(tensors["expert_map"] == group)[0]:
                        view[expert] = tensors[role][row]
        return model


def set_kernel(model, kernel):
    if model._can_set_experts_implementation():
        model.set_experts_implementation(kernel)
    return model


def ids(rows=2, length=24):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model, kernel="eager"):
    return set_kernel(model, kernel)(ids()).logits


@pytest.fixture(scope="module", autouse=True)
def cheap_collection():
    """A streamed pass collects garbage behind every layer: let it not look at all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def swept(name):
    return pytest.param(name, marks=() if name in architectures.FORMS else pytest.mark.full)


@pytest.fixture(scope="module", params=[swept(name) for name in architectures.CONFIGS])
def made(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield Made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def tokens():
    mask = torch.ones(4, 20, dtype=torch.uint8)
    mask[1, 13:] = 0
    return ids(4, 20).to(torch.int32), mask


def test_the_streamed_pass_is_the_ordinary_forward_bit_for_bit(made, tokens, tmp_path):
    layered = LayeredModel(made.path, torch.float32, CPU)
    batches = batches_of(*tokens, 40, CPU)
    files, hidden = capture(layered, made.layout, batches, torch.tensor([0, 0, 0, 1]), tmp_path, {"stage": "capture"})
    decoder = layer_stacks(made.stock)[-1].module
    for batch, last in zip(batches, hidden, strict=True):
        with torch.no_grad():
            assert torch.equal(final_hidden(layered, batch, last), decoder(**batch, use_cache=False).last_hidden_state)
    with torch.no_grad():  # the model around the decoder adds its head and nothing else
        last, keep = final_hidden(layered, batches[0], hidden[0]), batches[0]["attention_mask"].bool()
        expected = made.stock(**batches[0], use_cache=False).logits[keep]
        torch.testing.assert_close(logits_function(made.stock)(last[keep]), expected, rtol=1e-4, atol=1e-5)
    for layer, path in files.items():
        with Reader(path, layer) as reader:
            assert reader.count() + reader.count(heldout=True) >= int(tokens[1].sum())


@pytest.mark.parametrize("made", ["glm_moe_dsa", "zaya"], indirect=True)
def test_a_killed_pass_goes_on_with_what_its_layers_had_handed_on(made, tokens, tmp_path, monkeypatch):
    module = importlib.import_module("mergemoe.calibration.capture")
    arguments = (made.layout, batches_of(*tokens, 40, CPU), torch.zeros(4), tmp_path, {"stage": "capture"})
    real, calls = module.run_layer, []

    def dies(*args):
        calls.append(args)
        assert len(calls) < 6, "killed in the third layer"
        return real(*args)

    monkeypatch.setattr(module, "run_layer", dies)
    with pytest.raises(AssertionError, match="killed"):
        capture(LayeredModel(made.path, torch.float32, CPU), *arguments)
    monkeypatch.setattr(module, "run_layer", lambda *args: (calls.append(args), real(*args))[1])
    found = capture(LayeredModel(made.path, torch.float32, CPU), *arguments)[1]
    assert len(calls) == 6 + 2
    monkeypatch.undo()
    expected = capture(LayeredModel(made.path, torch.float32, CPU), *arguments[:3], tmp_path / "whole", arguments[4])[1]
    assert all(map(torch.equal, found, expected))


@torch.no_grad()
def test_features_and_down_projection_are_those_of_the_stock_module(made, tokens):
    model = made.stock
    for entry in made.layout["layers"]:
        outputs = []
        recorder = Recorder(model, entry)
        module = model.get_submodule(entry["module"])
        handle = module.register_forward_hook(lambda m, args, out, outputs=outputs: outputs.append(out))
        batch = batches_of(*tokens, 80, CPU)[0]
        model(**batch, use_cache=False)
        rows = recorder.rows(batch["attention_mask"], 0)
        recorder.remove()
        handle.remove()
        experts = read_experts(made.layout, entry["layer"])
        act = Activation(**entry["activation"])
        index, weight = rows["expert_index"].long(), rows["expert_weight"]
        computed = routed_output(rows["hidden"], index, weight, experts, act)
        keep = batch["attention_mask"].flatten().bool()
        expected = outputs[0].reshape(-1, *outputs[0].shape[-1:])
        if made.name.startswith("llama4"):  # a batch per expert
            expected = expected.view(entry["experts"], len(keep), -1).sum(0)
        if made.name == "jetmoe":
            expected = expected - module.bias
        expected = expected[keep]
        if entry["identity"]:  # compare the tokens that chose none
            whole = (weight > 0).all(1)
            computed, expected = computed[whole], expected[whole]
        assert len(expected) > 4
        torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)


def test_keeping_all_experts_writes_the_original_bytes(made, tmp_path):
    everything = {}
    for entry in made.layout["layers"]:
        n, roles = entry["experts"], read_experts(made.layout, entry["layer"]).roles()
        everything[entry["layer"]] = {
            "expert_map": torch.arange(n),
            "groups": torch.empty(0, dtype=torch.int64),
            **{role: matrices[:0] for role, matrices in roles.items()},
        }
    assemble(made.layout, everything, tmp_path / "same")
    for path in shard_files(made.path):
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == json.loads(
        (made.path / "config.json").read_text()
    )


def test_a_random_grouping_equals_copies_in_all_slots(made):
    for kernel in KERNELS if made.merged._can_set_experts_implementation() else KERNELS[-1:]:
        found, expected = logits(made.merged, kernel), logits(made.expanded, kernel)
        if kernel == "batched_mm":
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (logits(made.stock) - logits(made.expanded)).abs().max() > 1e-2  # the grouping changes something


def test_the_compact_files_hold_the_groups(made):
    for entry in made.layout["layers"]:
        tensors = made.solved[entry["layer"]]
        assert read_expert_map(made.layout, entry["layer"], made.compact) == tensors["expert_map"].tolist()
        compact = read_experts(made.layout, entry["layer"], folder=made.compact)
        full = read_experts(made.layout, entry["layer"])
        for role, matrices in compact.roles().items():
            for group in range(len(compact)):
                row = torch.where(tensors["groups"] == group)[0]
                first = int(torch.where(tensors["expert_map"] == group)[0][0])
                expected = tensors[role][row[0]] if len(row) else full.roles()[role][first]
                assert torch.equal(matrices[group], expected), role


@pytest.mark.parametrize("made", architectures.FORMS, indirect=True)
def test_narrower_experts_equal_wide_ones_whose_other_neurons_are_zero(made, tmp_path):
    narrow = {entry["layer"]: narrowed(made.layout, entry) for entry in made.layout["layers"]}
    assemble(made.layout, narrow, tmp_path / "narrow")
    model, wide = mergemoe.load(tmp_path / "narrow", "cpu", torch.float32), copy.deepcopy(made.stock)
    for name, (module, family) in experts_modules(wide).items():
        entry = next(entry for entry in made.layout["layers"] if entry["module"] == name)
        for role, (parameter, held) in family.roles.items():
            small, expert_map = narrow[entry["layer"]][role], narrow[entry["layer"]]["expert_map"]
            for expert, group in enumerate(expert_map.tolist()):
                if "{}" in parameter:
                    view = module.get_parameter(parameter.format(expert)).data
                else:
                    whole = module.get_parameter(parameter).data
                    view = held.view(whole[: len(whole) - entry["roles"][role]["spare"]], entry["experts"])[expert]
                view.zero_()
                view[tuple(map(slice, small[group].shape))] = small[group]
    torch.testing.assert_close(logits(model), logits(wide), rtol=1e-4, atol=1e-5)
    assert (logits(model) - logits(made.stock)).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(mergemoe.load(tmp_path / "again", "cpu")), logits(model))


def narrowed(described, entry):
    """All experts in groups, each of which keeps 3 of its neurons."""
    tensors = random_groups(described, entry)
    first = [tensors["expert_map"].tolist().index(group) for group in range(int(tensors["expert_map"].max()) + 1)]
    narrow = {"groups": torch.arange(len(first)), "expert_map": tensors["expert_map"]}
    for role, matrices in read_experts(described, entry["layer"]).roles().items():
        whole = matrices[first]
        narrow[role] = whole if role == "down_bias" else whole[:, :, :3] if role == "down" else whole[:, :3]
    return narrow


@pytest.mark.parametrize("made", architectures.FORMS, indirect=True)
def test_wider_experts_equal_those_whose_neurons_they_hold_twice(made, tmp_path):
    wide = {entry["layer"]: doubled(made.layout, entry) for entry in made.layout["layers"]}
    assemble(made.layout, wide, tmp_path / "wide")
    model = mergemoe.load(tmp_path / "wide", "cpu", torch.float32)
    torch.testing.assert_close(logits(model), logits(made.merged), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(mergemoe.load(tmp_path / "again", "cpu")), logits(model))


def doubled(described, entry):
    """All experts in groups, of two neurons in place of each: with the same weights, and half the column."""
    experts = compact_experts(read_experts(described, entry["layer"]), random_groups(described, entry))
    tensors = {"groups": torch.arange(len(experts)), "expert_map": random_groups(described, entry)["expert_map"]}
    for role, matrices in experts.roles().items():
        if role == "down":
            matrices = torch.cat([matrices, matrices], 2) / 2
        elif role != "down_bias":
            matrices = torch.cat([matrices, matrices], 1)
        tensors[role] = matrices
    return tensors


def test_it_loads_both_ways_saves_again_and_generates(made, tmp_path):
    library = made.merged
    remote = made.auto.from_pretrained(made.compact, trust_remote_code=True, dtype=torch.float32).eval()
    assert torch.equal(logits(library), logits(remote))
    remote.save_pretrained(tmp_path / f"again_{made.name}")
    before, after = (
        {key: tensor for path in shard_files(folder) for key, tensor in load_file(path).items()}
        for folder in (made.compact, tmp_path / f"again_{made.name}")
    )
    if made.name == "deepseek_v4":  # transformers 5.23 saves its final norm under another name (architectures.py)
        after["norm.weight"] = after.pop("model.norm.weight")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    config, again = (
        json.loads((folder / "config.json").read_text()) for folder in (made.compact, tmp_path / f"again_{made.name}")
    )
    assert {key: config[key] for key in ("mergemoe", "auto_map")} == {
        key: again[key] for key in ("mergemoe", "auto_map")
    }
    code = [folder / "modeling_mergemoe.py" for folder in (made.compact, tmp_path / f"again_{made.name}")]
    assert code[0].read_bytes() == code[1].read_bytes()
    found, expected = (m.generate(ids(1, 9), max_new_tokens=5, do_sample=False) for m in (library, made.expanded))
    assert torch.equal(found, expected)


def test_every_auto_class_builds_its_model_with_the_merged_experts_or_refuses(made):
    """Each has the layers of the model that generates text, or raises; none has experts that nobody loaded."""
    named = json.loads((made.compact / "config.json").read_text())["auto_map"]
    facts = made.merged.config.mergemoe["experts"]
    for auto, reference in named.items():
        if made.name in UNREAD and not reference.endswith(type(made.merged).__name__):
            with pytest.raises(ValueError, match="does not find .*experts"):
                getattr(transformers, auto).from_pretrained(made.compact, trust_remote_code=True)
            continue
        cls, stock = getattr(transformers, auto), reference.rpartition(".MergeMoe")[2]
        if (
            (prefix := getattr(transformers, stock).base_model_prefix)
            == "transformer"
            != next(iter(facts)).split(".")[0]
        ):
            with pytest.raises(ValueError, match="names its layers otherwise"):
                cls.from_pretrained(made.compact, trust_remote_code=True)
            continue
        model = cls.from_pretrained(made.compact, trust_remote_code=True, dtype=torch.float32).eval()
        assert type(model).__name__ == f"MergeMoe{stock}"
        own = {name: tensor for name, tensor in model.state_dict().items() if "expert" in name}
        theirs = made.merged.state_dict()
        for name, tensor in own.items():
            (twin,) = (name for name in (name, f"{prefix}.{name}") if name in theirs)
            assert torch.equal(tensor, theirs[twin]), (auto, name)
        if type(model).__name__ != type(made.merged).__name__:
            with pytest.raises(ValueError, match="made smaller by from_pretrained only"):
                cls.from_config(model.config, trust_remote_code=True)


def test_a_bare_model_computes_what_the_whole_one_does(made):
    if made.name in UNREAD:
        return
    bare = transformers.AutoModel.from_pretrained(made.compact, trust_remote_code=True, dtype=torch.float32).eval()
    whole = made.merged
    if type(bare).__name__ != type(whole).__name__:
        whole = whole.base_model if whole.base_model is not whole else whole.model
    set_kernel(bare, "eager"), set_kernel(made.merged, "eager")
    with torch.no_grad():
        found, expected = (
            model(ids(), **({"decoder_input_ids": ids()} if model.config.is_encoder_decoder else {}))[0]
            for model in (bare, whole)
        )
    assert torch.equal(found, expected)


def test_a_plain_stock_load_by_the_same_auto_class_raises(made):
    assert made.auto._model_mapping[type(made.stock.config)] is type(made.stock)
    with pytest.raises(RuntimeError):
        made.auto.from_pretrained(made.compact)


@pytest.mark.parametrize("made", ["mixtral", "gpt_oss", "dbrx", "llama4_text"], indirect=True)
def test_a_plain_stock_load_raises_even_for_one_who_strips_what_he_does_not_know(made, tmp_path):
    shutil.copytree(made.compact, tmp_path / "stripped")
    config = json.loads((tmp_path / "stripped" / "config.json").read_text())
    (tmp_path / "stripped" / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key not in {"auto_map", "mergemoe"}})
    )
    with pytest.raises(RuntimeError):
        made.auto.from_pretrained(tmp_path / "stripped")


@pytest.mark.parametrize("made", ["mixtral", "gpt_oss", "nemotron_h", "step3p7"], indirect=True)
def test_a_token_s_equal_experts_may_be_computed_once(made):
    once = mergemoe.load(made.compact, "cpu", torch.float32, deduplicate=True)
    for kernel in KERNELS if once._can_set_experts_implementation() else KERNELS[-1:]:
        found, expected = logits(once, kernel), logits(made.merged, kernel)
        assert torch.equal(found, expected) == (kernel != "grouped_mm")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@hypothesis.given(strategies.data())
def test_the_roles_in_a_tensor_are_read_where_they_were_written_and_share_no_place(data):
    integers, booleans = strategies.integers(1, 5), strategies.booleans()
    role = data.draw(strategies.lists(integers, min_size=2, max_size=3), "[E, I] or [E, I, H]")
    how = {"interleaved": data.draw(booleans, "interleaved")}
    if len(role) == 3:
        how |= {"transposed": data.draw(booleans, "transposed"), "flat": data.draw(booleans, "flat")}
    parts = data.draw(integers, "parts")
    stackings = [Stacking(part, parts, **how) for part in range(parts)]
    whole = torch.full(stackings[0].shape(role), -1)
    values = torch.arange(whole.numel()).view(parts, *role)
    for stacking, own in zip(stackings, values, strict=True):
        stacking.view(whole, role[0]).copy_(own)
    assert sorted(whole.flatten().tolist()) == list(range(whole.numel()))
    for stacking, own in zip(stackings, values, strict=True):
        assert torch.equal(stacking.view(whole, role[0]), own)
