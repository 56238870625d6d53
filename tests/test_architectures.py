"""Every architecture: streamed, described, computed, compressed, saved and loaded as transformers would have it."""

import json
import shutil

import architectures
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import mergemoe
from mergemoe import layout
from mergemoe.activations import Reader
from mergemoe.assemble import assemble
from mergemoe.calls import Recorder
from mergemoe.capture import batches_of, capture
from mergemoe.checkpoint import shards
from mergemoe.families import experts_modules, model_class
from mergemoe.features import Activation, routed_output
from mergemoe.forward import final_hidden
from mergemoe.stacking import Stacking
from mergemoe.stream import LayeredModel
from mergemoe.weights import read_expert_map, read_experts

CPU = torch.device("cpu")
KERNELS = ("batched_mm", "grouped_mm", "eager")


class Made:
    """One architecture's checkpoint and what the workflow makes of it."""

    def __init__(self, name, folder):
        self.name = name
        self.path = architectures.save(name, folder / "full")
        self.layout = layout.describe(self.path, digests=False)
        self.solved = {entry["layer"]: random_groups(self.layout, entry) for entry in self.layout["layers"]}
        self.compact = folder / f"compact_{name}"
        assemble(self.layout, self.solved, self.compact, shard_bytes=60_000)

    def stock(self, kernel="eager"):
        """The stock model, whole."""
        config = transformers.AutoConfig.from_pretrained(self.path)
        model = model_class(config).from_pretrained(self.path, dtype=torch.float32).eval()
        return set_kernel(model, kernel)

    def expanded(self):
        """The stock model with each expert's weights replaced by its group's."""
        model = self.stock()
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


def random_groups(described, entry):
    """Groups drawn at random, with random weights: what solve would hand over. Layers differ in M."""
    generator = torch.Generator().manual_seed(entry["layer"])
    kept = 3 + entry["layer"] % 2
    expert_map = torch.cat(
        [torch.arange(kept), torch.randint(0, kept - 1, (entry["experts"] - kept,), generator=generator)]
    )
    groups = [g for g in range(kept) if int((expert_map == g).sum()) > 1]
    tensors = {"groups": torch.tensor(groups), "expert_map": expert_map}
    for role, matrices in read_experts(described, entry["layer"]).roles().items():
        shape = (len(groups), *matrices.shape[1:])
        tensors[role] = (torch.randn(shape, generator=generator) * matrices.std()).to(matrices.dtype)
    return tensors


def set_kernel(model, kernel):
    if model._can_set_experts_implementation():
        model.set_experts_implementation(kernel)
    return model


def ids(rows=2, length=24):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model, kernel="eager"):
    return set_kernel(model, kernel)(ids()).logits


@pytest.fixture(scope="module", params=architectures.CONFIGS)
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
    model, decoder = made.stock(), None
    decoder = model.get_decoder() if model.get_decoder() is not model else model.model
    for batch, last in zip(batches, hidden, strict=True):
        with torch.no_grad():
            assert torch.equal(final_hidden(layered, batch, last), decoder(**batch, use_cache=False).last_hidden_state)
    for layer, path in files.items():
        with Reader(path, layer) as reader:
            assert reader.count() + reader.count(heldout=True) >= int(tokens[1].sum())


@torch.no_grad()
def test_features_and_down_projection_are_those_of_the_stock_module(made, tokens):
    model = made.stock()
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
        if made.name == "llama4":  # a batch per expert
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
    for path in shards(made.path):
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == json.loads(
        (made.path / "config.json").read_text()
    )


def test_a_random_grouping_equals_copies_in_all_slots(made):
    compact, expanded = mergemoe.load(made.compact, "cpu", torch.float32), made.expanded()
    for kernel in KERNELS if compact._can_set_experts_implementation() else KERNELS[-1:]:
        found, expected = logits(compact, kernel), logits(expanded, kernel)
        if kernel == "batched_mm":
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (logits(made.stock()) - logits(expanded)).abs().max() > 1e-2  # the grouping changes something


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


def test_it_loads_both_ways_saves_again_and_generates(made, tmp_path):
    library = mergemoe.load(made.compact, "cpu", torch.float32)
    remote = AutoModelForCausalLM.from_pretrained(made.compact, trust_remote_code=True, dtype=torch.float32).eval()
    assert torch.equal(logits(library), logits(remote))
    remote.save_pretrained(tmp_path / f"again_{made.name}")
    before, after = (
        {key: tensor for path in shards(folder) for key, tensor in load_file(path).items()}
        for folder in (made.compact, tmp_path / f"again_{made.name}")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    third = mergemoe.load(tmp_path / f"again_{made.name}", "cpu", torch.float32)
    assert torch.equal(logits(third), logits(library))
    expected = made.expanded().generate(ids(1, 9), max_new_tokens=5, do_sample=False)
    assert torch.equal(library.generate(ids(1, 9), max_new_tokens=5, do_sample=False), expected)


def test_a_plain_stock_load_raises(made, tmp_path):
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(made.compact)
    shutil.copytree(made.compact, tmp_path / "stripped")  # even by someone who strips what he does not know
    config = json.loads((tmp_path / "stripped" / "config.json").read_text())
    (tmp_path / "stripped" / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key not in {"auto_map", "mergemoe"}})
    )
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(tmp_path / "stripped")


def test_a_stacking_reads_and_writes_the_same_place():
    for how in (Stacking(1, 2), Stacking(0, 2, interleaved=True), Stacking(1, 2, transposed=True), Stacking(flat=True)):
        whole = torch.zeros(how.shape([4, 3, 5]))
        how.view(whole, 4)[2, 1, 3] = 7.0
        assert how.view(whole, 4).shape == (4, 3, 5)
        assert int((whole == 7).sum()) == 1 and how.view(whole, 4)[2, 1, 3] == 7
