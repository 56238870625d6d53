"""switch_transformers, an encoder and a decoder: through every step, against transformers' own forward."""

import json
import math
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

import mergemoe
from mergemoe.calibration import capture as module
from mergemoe.calibration.activation_file import Reader
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.calibration.hooks import Recorder
from mergemoe.calibration.profile import profile_layer
from mergemoe.calibration.token_sequences import heldout_rows
from mergemoe.checkpoints.expert_weights import read_expert_map, read_experts
from mergemoe.checkpoints.model_folder import shard_files
from mergemoe.compressed.assemble import assemble
from mergemoe.errors import UserError
from mergemoe.evaluation import fidelity
from mergemoe.grouping import cluster
from mergemoe.merging.solve import solve
from mergemoe.methods import catalogue
from mergemoe.models import layout
from mergemoe.models.layered_model import LayeredModel
from mergemoe.models.layerwise_forward import LayerwiseForward, final_hidden, run_layer
from mergemoe.moe.expert_forward import Activation, routed_output
from mergemoe.moe.problem import Problem
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import preflight

pytestmark = pytest.mark.usefixtures("own_module_cache")

CPU = torch.device("cpu")
CAPACITY, HALF = 3, 11
HELDOUT = heldout_rows(6, 0.2, 7)
MOE = {1: "encoder.block.1.layer.1.mlp", 3: "decoder.block.1.layer.2.mlp"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A random model of 2 + 2 blocks, of which every second holds 8 experts with room for 3 tokens of a sequence."""
    torch.manual_seed(0)
    config = SwitchTransformersConfig(
        vocab_size=97,
        d_model=32,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_sparse_encoder_layers=1,
        num_decoder_layers=2,
        num_sparse_decoder_layers=1,
        num_heads=4,
        num_experts=8,
        expert_capacity=CAPACITY,
        decoder_start_token_id=0,
    )
    folder = tmp_path_factory.mktemp("switch") / "full"
    SwitchTransformersForConditionalGeneration(config).save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture(scope="module")
def described(path):
    return layout.describe_layout(path, digests=False)


@pytest.fixture(scope="module")
def captured(path, described, tmp_path_factory):
    """{layer: file} and the decoder's last states per batch."""
    return streamed(path, described, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def solved(described):
    return {entry["layer"]: random_groups(described, entry) for entry in described["layers"]}


@pytest.fixture(scope="module")
def compact(described, solved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact") / "compact_switch"
    assemble(described, solved, folder, shard_bytes=60_000)
    return folder


def random_groups(described, entry):
    """Groups drawn at random, with random weights; layers differ in M."""
    generator = torch.Generator().manual_seed(entry["layer"])
    kept = 3 + entry["layer"] % 4 // 2
    expert_map = torch.cat([torch.arange(kept), torch.randint(0, kept - 1, (8 - kept,), generator=generator)])
    groups = [g for g in range(kept) if int((expert_map == g).sum()) > 1]
    tensors = {"groups": torch.tensor(groups), "expert_map": expert_map}
    for role, matrices in read_experts(described, entry["layer"]).roles().items():
        tensors[role] = torch.randn(len(groups), *matrices.shape[1:], generator=generator) * matrices.std()
    return tensors


def stock(path, dtype=torch.float32):
    return SwitchTransformersForConditionalGeneration.from_pretrained(path, dtype=dtype).eval()


def expanded(path, solved):
    """The stock model with each expert's weights replaced by its group's."""
    model = stock(path)
    for layer, tensors in solved.items():
        experts = model.get_submodule(f"{MOE[layer]}.experts")
        for row, group in enumerate(tensors["groups"].tolist()):
            for expert in torch.where(tensors["expert_map"] == group)[0].tolist():
                experts[f"expert_{expert}"].wi.weight.data = tensors["up"][row]
                experts[f"expert_{expert}"].wo.weight.data = tensors["down"][row]
    return model


def tokens():
    """Six sequences of 22 tokens; one ends in its second half, one in its first."""
    ids = torch.randint(3, 97, (6, 2 * HALF), generator=torch.Generator().manual_seed(5), dtype=torch.int32)
    ids[3] = ids[3, 0]  # more equal tokens than any expert has room for
    mask = torch.ones(6, 2 * HALF, dtype=torch.uint8)
    mask[1, 15:] = 0
    mask[4, 7:] = 0
    return ids, mask


def batches():
    return batches_of(*tokens(), 50, CPU)


@torch.no_grad()
def logits(model):
    """The stock forward, which makes the decoder's inputs from labels itself."""
    return torch.cat(
        [
            model(
                input_ids=batch["input_ids"][:, :HALF],
                attention_mask=batch["attention_mask"][:, :HALF],
                labels=batch["input_ids"][:, HALF:].contiguous(),
                decoder_attention_mask=batch["attention_mask"][:, HALF:],
                use_cache=False,
            ).logits
            for batch in batches()
        ]
    )


def generated(model):
    torch.manual_seed(3)
    return model.generate(tokens()[0][:2].long(), max_new_tokens=6, do_sample=True)


def streamed(path, described, scratch):
    layered, heldout = LayeredModel(path, torch.float32, CPU), torch.tensor(HELDOUT)
    return capture(layered, described, batches(), heldout, scratch, {"stage": "capture"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def test_every_block_of_the_streamed_encoder_and_decoder_gives_the_ordinary_states(path, dtype):
    layered = LayeredModel(path, dtype, CPU)
    forward, found = LayerwiseForward(layered, batches()), []
    for number, layer in forward.layers():
        for b in range(3):
            forward.hidden[b] = run_layer(layer, forward.hidden[b], forward.arguments[b][number])
        found.append(list(forward.hidden))
    found.append([final_hidden(layered, b, h) for b, h in zip(batches(), forward.hidden, strict=True)])
    model = stock(path, dtype)
    expected = [[] for _ in range(5)]
    for block, states in zip((*model.encoder.block, *model.decoder.block), expected[:4], strict=True):
        block.register_forward_hook(lambda m, args, out, states=states: states.append(out[0]))
    model.decoder.register_forward_hook(lambda m, args, out: expected[4].append(out.last_hidden_state))
    logits(model)
    assert len(found) == 5 and all(len(states) == 3 for states in (*found, *expected))
    for mine, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_the_decoders_layers_follow_the_encoders(described):
    assert described["decoder_layers"] == 4
    assert {entry["layer"]: entry["module"] for entry in described["layers"]} == {
        layer: f"{block}.experts" for layer, block in MOE.items()
    }
    assert {entry["top_k"] for entry in described["layers"]} == {1}


def test_the_files_hold_what_the_experts_were_called_with(path, captured):
    model, calls, routed = stock(path), {layer: [] for layer in MOE}, {layer: [] for layer in MOE}
    for layer, block in MOE.items():
        mlp = model.get_submodule(block)
        mlp.experts.register_forward_pre_hook(lambda m, args, calls=calls[layer]: calls.append(args))
        mlp.router.register_forward_hook(lambda m, args, out, routed=routed[layer]: routed.append(out[2]))
    logits(model)
    for layer, file in captured[0].items():
        real = (tokens()[1][:, :HALF] if layer == 1 else tokens()[1][:, HALF:]).bool()
        hidden, chosen, weight = (torch.cat(parts) for parts in zip(*calls[layer], strict=True))
        with Reader(file, layer) as reader:
            held = {name: reader.read(name, 0, 1000) for name in ("hidden", "expert_weight", "router_logits")}
            index, sequence = reader.read("expert_index", 0, 1000), reader.read("sequence", 0, 1000)
        served = chosen[real.flatten()].sum(-1).bool()
        assert torch.equal(held["hidden"], hidden[real.flatten()])
        assert torch.equal(held["router_logits"], torch.cat(routed[layer])[real])
        assert torch.equal(held["expert_weight"], weight[real.flatten()].masked_fill(~served, 0))
        assert torch.equal(index[served].long(), chosen[real.flatten()].argmax(-1)[served])
        assert torch.equal(sequence, torch.arange(6, dtype=torch.int32)[:, None].expand(-1, HALF)[real])


def test_a_token_that_its_expert_has_no_room_for_has_weight_zero(described, captured):
    dropped = 0
    for layer, file in captured[0].items():
        with Reader(file, layer) as reader:
            wanted, sequence = reader.read("router_logits", 0, 1000).argmax(1), reader.read("sequence", 0, 1000)
            weight = reader.read("expert_weight", 0, 1000)[:, 0]
            counted = profile_layer(reader, read_experts(described, layer), Activation("relu"))
            served = weight[sequence != HELDOUT.index(True)] > 0
            assert sum(counted["usage"]) == int(served.sum()) < len(served)
        for row in range(6):
            for expert in range(8):
                mine = torch.where((sequence == row) & (wanted == expert))[0]
                assert (weight[mine[:CAPACITY]] > 0).all()
                assert (weight[mine[CAPACITY:]] == 0).all()
                dropped += len(mine[CAPACITY:])
    assert dropped > 10


@pytest.mark.parametrize("dies", [2, 3], ids=["between", "decoder"])
def test_a_killed_capture_goes_on_in_the_decoder(path, described, captured, tmp_path, monkeypatch, dies):
    real, calls = module.run_layer, []

    def run(layer, hidden, arguments):
        calls.append(layer.layer[0].SelfAttention.layer_idx + 2 * layer.is_decoder)
        if calls[-1] == dies and len(calls) == 3 * dies + 1:  # of three batches the first
            raise KeyboardInterrupt
        return real(layer, hidden, arguments)

    monkeypatch.setattr(module, "run_layer", run)
    with pytest.raises(KeyboardInterrupt):
        streamed(path, described, tmp_path)
    calls.clear()
    files, hidden = streamed(path, described, tmp_path)
    assert set(calls) == set(range(dies, 4))
    assert all(file.read_bytes() == captured[0][layer].read_bytes() for layer, file in files.items())
    assert all(torch.equal(a, b) for a, b in zip(hidden, captured[1], strict=True))


@torch.no_grad()
def test_features_and_down_projection_are_those_of_the_stock_module(path, described):
    model = stock(path)
    for entry in described["layers"]:
        outputs, recorder = [], Recorder(model, entry)
        model.get_submodule(entry["module"]).register_forward_hook(
            lambda m, args, out, outputs=outputs: outputs.append(out)
        )
        logits(model)
        rows = recorder.rows(torch.ones(2, HALF), 4)  # of the last batch
        recorder.remove()
        experts, act = read_experts(described, entry["layer"]), Activation(**entry["activation"])
        found = routed_output(rows["hidden"], rows["expert_index"].long(), rows["expert_weight"], experts, act)
        torch.testing.assert_close(found, outputs[-1], rtol=1e-4, atol=1e-5)
        assert (outputs[-1] == 0).all(1).any()  # tokens without an expert


def test_keeping_all_experts_writes_the_original_bytes(path, described, tmp_path):
    everything = {
        entry["layer"]: {
            "expert_map": torch.arange(8),
            "groups": torch.empty(0, dtype=torch.int64),
            **{role: matrices[:0] for role, matrices in read_experts(described, entry["layer"]).roles().items()},
        }
        for entry in described["layers"]
    }
    assemble(described, everything, tmp_path / "same")
    for file in (*shard_files(path), path / "config.json"):
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()


def test_a_random_grouping_equals_copies_in_all_slots(path, solved, compact):
    expected = logits(expanded(path, solved))
    found = logits(mergemoe.load(compact, "cpu", torch.float32))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (logits(stock(path)) - expected).abs().max() > 1e-2  # the grouping changes something


def test_the_compact_files_hold_the_groups_and_names_without_numbers(path, described, solved, compact):
    stored = {key: tensor for file in shard_files(compact) for key, tensor in load_file(file).items()}
    for layer, tensors in solved.items():
        assert read_expert_map(described, layer, compact) == tensors["expert_map"].tolist()
        full, small = read_experts(described, layer), read_experts(described, layer, folder=compact)
        for role, name in {"up": "wi", "down": "wo"}.items():
            for group in range(len(small)):
                row = torch.where(tensors["groups"] == group)[0]
                first = int(torch.where(tensors["expert_map"] == group)[0][0])
                expected = tensors[role][row[0]] if len(row) else full.roles()[role][first]
                assert torch.equal(small.roles()[role][group], expected)
            for gone in range(len(small), 8):
                assert stored[f"{MOE[layer]}.experts.expert_{gone}.{name}.weight"].shape == (0, 0)


def test_it_loads_both_ways_saves_again_and_generates(path, solved, compact, tmp_path):
    library = mergemoe.load(compact, "cpu", torch.float32)
    remote = AutoModelForSeq2SeqLM.from_pretrained(compact, trust_remote_code=True, dtype=torch.float32).eval()
    assert torch.equal(logits(library), logits(remote))
    remote.save_pretrained(tmp_path / "again_switch")
    before, after = (
        {key: tensor for file in shard_files(folder) for key, tensor in load_file(file).items()}
        for folder in (compact, tmp_path / "again_switch")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(logits(mergemoe.load(tmp_path / "again_switch", "cpu", torch.float32)), logits(library))
    expected = generated(expanded(path, solved))
    assert len(set(expected.flatten().tolist())) > 5
    assert torch.equal(generated(library), expected) and torch.equal(generated(remote), expected)


def test_a_plain_stock_load_raises(compact, tmp_path):
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForSeq2SeqLM.from_pretrained(compact)
    shutil.copytree(compact, tmp_path / "stripped")  # even by someone who strips what he does not know
    config = json.loads((tmp_path / "stripped" / "config.json").read_text())
    (tmp_path / "stripped" / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key not in {"auto_map", "mergemoe"}})
    )
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "stripped")


@pytest.mark.parametrize("method", ["average", "mergemoe"])
def test_compression_in_memory_gives_the_workflows_weights_bit_for_bit(path, described, captured, tmp_path, method):
    solved = {}
    for entry in described["layers"]:
        experts, act = read_experts(described, entry["layer"]), Activation(**entry["activation"])
        with Reader(captured[0][entry["layer"]], entry["layer"]) as reader:
            profiled = profile_layer(reader, experts, act)
            usage = profiled["usage"]
            problem = Problem(experts.map(lambda m: m.float()), [], reader, act)
            expert_map = cluster.group_experts("weights", 4, problem, profiled, entry["width"]).expert_map
            solved[entry["layer"]], record = solve(
                experts, expert_map, usage, reader, act, method=method, **catalogue.complete(method, {})
            )
            assert 0 < record["output_error"]["fit"] < 5
    assemble(described, solved, tmp_path / "workflow")
    expected = mergemoe.load(tmp_path / "workflow", "cpu").state_dict()
    ids, mask = tokens()
    given = {"input_ids": ids, "attention_mask": mask}
    found = mergemoe.compress(stock(path), given, experts=4, method=method, seed=7, holdout=0.2, batch_tokens=50)
    assert found.state_dict().keys() == expected.keys()
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    mergemoe.save(found, tmp_path / "saved_switch")
    remote = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved_switch", trust_remote_code=True).eval()
    assert torch.equal(logits(remote), logits(found))


def test_narrower_experts_that_stock_code_does_not_have_are_compact_and_it_is_said(path, caplog):
    ids, mask = tokens()
    given = {"input_ids": ids, "attention_mask": mask}
    found = mergemoe.compress(stock(path), given, experts=1.0, method="slim", width=0.5, seed=7, holdout=0.2)
    assert "no configuration for experts of these widths" in caplog.text
    assert type(found).__name__.startswith("MergeMoe")


@torch.no_grad()
def test_fidelity_is_over_the_decoders_half(path, compact):
    model, small = stock(path), mergemoe.load(compact, "cpu", torch.float32)
    full = fidelity.final_hidden_states(model, batches())
    ids, mask = tokens()
    read = torch.cat([torch.zeros(6, 1, dtype=torch.int32), ids[:, HALF:-1]], 1)
    states = fidelity.final_hidden_states(small, batches())
    scores = fidelity.language_scores(
        fidelity.logits_function(model), states, read, mask[:, HALF:], CPU, full_hidden=full
    )
    real = mask[:, HALF + 1 :].bool()  # places whose next place is read, too
    mine, theirs = (logits(m)[:, :-1][real].double().log_softmax(-1) for m in (small, model))
    loss = torch.nn.functional.nll_loss(mine, ids[:, HALF:-1][real].long())
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert scores["kl"] == pytest.approx(float((theirs.exp() * (theirs - mine)).sum(1).mean()), rel=1e-4)


def test_sequences_that_end_in_the_encoders_half_are_refused_in_one_line(path):
    ids, mask = tokens()
    mask[:, HALF:] = 0
    with pytest.raises(UserError, match="reads no token.*Lower `length`"):
        for _ in LayerwiseForward(LayeredModel(path, torch.float32, CPU), batches_of(ids, mask, 50, CPU)).layers():
            pass


def test_tasks_of_lm_eval_and_generation_are_refused_before_the_first_job(path, tmp_path):
    (tmp_path / "text.txt").write_text("a")
    text = {"source": str(tmp_path / "text.txt"), "samples": 4, "length": 8}
    content = {
        "model": {"switch": {"path": str(path)}},
        "calibrate": {"c": text},
        "cluster": {"half": {"by": "weights", "experts": 4}},
        "solve": {"average": {"method": "average"}},
        "evaluate": {"heldout": text},
        "runs": "all",
    }
    preflight.check_params(read_params(content))
    content["evaluate"]["tasks"] = {"blimp": {}}
    with pytest.raises(UserError, match="evaluate.tasks: model.switch has an encoder"):
        preflight.check_params(read_params(content))
    content["evaluate"] = {"heldout": text, "generation": {"prompts": 4, "prompt_tokens": 8}}
    with pytest.raises(UserError, match="evaluate.generation: model.switch has an encoder"):
        preflight.check_params(read_params(content))


def test_a_configuration_alone_names_the_class():
    from mergemoe.models.families import model_class

    assert model_class(transformers.SwitchTransformersConfig()) is SwitchTransformersForConditionalGeneration
