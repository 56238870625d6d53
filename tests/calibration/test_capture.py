"""The streamed pass: bit-equal to the ordinary forward, what the experts are called with, resumable."""

import h5py
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import mergemoe.calibration.capture as module
from mergemoe.calibration.activation_file import Reader
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.errors import ArtifactError, UserError
from mergemoe.models.layered_model import LayeredModel
from mergemoe.models.layerwise_forward import final_hidden

CPU = torch.device("cpu")


def run(described, tokens, scratch, dtype=torch.float32):
    layered = LayeredModel(described["path"], dtype, CPU)
    batches = batches_of(tokens["input_ids"], tokens["attention_mask"], 80, CPU)
    return layered, batches, capture(layered, described, batches, tokens["heldout"], scratch, {"stage": "capture"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_streamed_pass_is_the_ordinary_forward_bit_for_bit(described, tokens, tmp_path, dtype):
    layered, batches, (_, hidden) = run(described, tokens, tmp_path, dtype)
    model = AutoModelForCausalLM.from_pretrained(described["path"], dtype=dtype, experts_implementation="eager")
    for batch, last in zip(batches, hidden, strict=True):
        with torch.no_grad():
            expected = model.model(**batch, use_cache=False).last_hidden_state
        assert torch.equal(final_hidden(layered, batch, last), expected)


def test_the_file_holds_what_the_experts_were_called_with(described, tokens, captured):
    model = AutoModelForCausalLM.from_pretrained(described["path"], dtype=torch.float32, experts_implementation="eager")
    calls, logits = [], []
    block = model.model.layers[2].mlp
    block.experts.register_forward_pre_hook(lambda _, args: calls.append(args))
    block.gate.register_forward_hook(lambda _, args, out: logits.append(out[0]))
    for batch in batches_of(tokens["input_ids"], tokens["attention_mask"], 80, CPU):
        with torch.no_grad():
            model(**batch, use_cache=False)
    real = tokens["attention_mask"].flatten().bool().numpy()
    with h5py.File(captured[2]) as file:
        for name, parts in {"hidden": 0, "expert_index": 1, "expert_weight": 2}.items():
            expected = torch.cat([call[parts] for call in calls]).numpy()[real]
            np.testing.assert_array_equal(file[name][:], expected)
        np.testing.assert_array_equal(file["router_logits"][:], torch.cat(logits).detach().numpy()[real])
        np.testing.assert_array_equal(file["sequence"][:], np.repeat(np.arange(6), 40)[real])
        np.testing.assert_array_equal(file["heldout"][:], tokens["heldout"].bool().numpy())


def test_bfloat16_comes_back_bit_for_bit(described, tokens, tmp_path):
    _, _, (files, _) = run(described, tokens, tmp_path, torch.bfloat16)
    with Reader(files[1]) as reader:
        assert reader.file["hidden"].dtype == np.uint16
        hidden = torch.cat([chunk.hidden for chunk in reader.chunks()])
    assert torch.equal(hidden, hidden.to(torch.bfloat16).float())
    assert hidden.abs().max() > 0.1


def test_held_out_sequences_and_padding_are_never_among_the_fitted_tokens(reader, tokens):
    held = tokens["heldout"].bool()
    assert reader.count() == int(tokens["attention_mask"][~held].sum())
    assert reader.count(heldout=True) == int(tokens["attention_mask"][held].sum())
    assert sum(len(chunk.hidden) for chunk in reader.chunks(rows=7)) == reader.count()


def test_a_killed_capture_goes_on_after_its_last_finished_layer(described, tokens, captured, tmp_path, monkeypatch):
    real, calls = module.run_layer, []

    def dies_in_layer_2(layer, hidden, arguments):
        calls.append(layer.self_attn.layer_idx)
        if layer.self_attn.layer_idx == 2:
            raise KeyboardInterrupt
        return real(layer, hidden, arguments)

    monkeypatch.setattr(module, "run_layer", dies_in_layer_2)
    with pytest.raises(KeyboardInterrupt):
        run(described, tokens, tmp_path)
    assert set(calls) == {0, 1, 2}
    calls.clear()
    monkeypatch.setattr(module, "run_layer", lambda *a: (calls.append(a[0].self_attn.layer_idx), real(*a))[1])
    _, _, (files, _) = run(described, tokens, tmp_path)
    assert set(calls) == {2}
    for layer, path in files.items():
        assert path.read_bytes() == captured[layer].read_bytes()


def test_activations_that_are_not_finite_are_named(described, tokens, tmp_path, monkeypatch):
    real = module.run_layer
    monkeypatch.setattr(
        module, "run_layer", lambda layer, hidden, arguments: real(layer, hidden, arguments) * float("nan")
    )
    with pytest.raises(UserError, match=r"layer 0: 2560 of 2560 .*capture.dtype"):
        run(described, tokens, tmp_path)


def flipped(path):
    """The bytes of a file with one bit flipped in the middle of its numbers."""
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            where = file["hidden"].id.get_chunk_info(0)
        place = where.byte_offset + where.size // 2
    content[place] ^= 1
    return bytes(content)


def test_a_flipped_bit_and_a_truncated_file_are_named(captured, tmp_path):
    whole = captured[1].read_bytes()
    broken = tmp_path / "layer_001.h5"
    for content in (flipped(captured[1]), whole[: len(whole) // 2], b""):
        broken.write_bytes(content)
        with pytest.raises(ArtifactError, match="layer_001.h5 .* run `snakemake` again, which rebuilds"):
            Reader(broken)


def test_another_layers_file_is_not_taken_for_the_wanted_one(captured):
    with pytest.raises(ArtifactError, match="belongs to layer 1, not 2"):
        Reader(captured[1], 2)


def test_a_scratch_folder_that_lost_a_layer_is_not_taken_for_finished(described, tokens, captured, tmp_path):
    _, _, (files, _) = run(described, tokens, tmp_path)
    files[1].unlink()
    _, _, (again, _) = run(described, tokens, tmp_path)
    assert again[1].read_bytes() == captured[1].read_bytes()


@pytest.mark.parametrize("name", ["residual_002.safetensors", "layer_001.h5", "layer_002.h5"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_what_a_killed_pass_left_damaged_is_made_again(described, tokens, captured, tmp_path, capsys, name, damage):
    run(described, tokens, tmp_path)
    whole, other = (tmp_path / name).read_bytes(), flipped(tmp_path / name)
    (tmp_path / name).write_bytes({"flipped": other, "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    _, _, (again, hidden) = run(described, tokens, tmp_path)
    assert f"capture does not continue after layer 2: {tmp_path / name}" in capsys.readouterr().err
    assert all(again[layer].read_bytes() == captured[layer].read_bytes() for layer in (1, 2))
    (tmp_path / "anew").mkdir()
    assert all(map(torch.equal, hidden, run(described, tokens, tmp_path / "anew")[2][1]))


@pytest.mark.parametrize("name", ["residual_000.safetensors", "residual_x.safetensors", "residual_.safetensors"])
def test_the_state_of_another_layer_is_not_gone_on_from(described, tokens, captured, tmp_path, monkeypatch, name):
    """A pass is killed in layer 2, and the state before layer 2 gets the bytes of the one before layer 1."""

    def run_layer(layer, hidden, arguments):
        if layer.self_attn.layer_idx == 2:
            raise KeyboardInterrupt
        return real(layer, hidden, arguments)

    real = module.run_layer
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "run_layer", run_layer)
        run(described, tokens, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / "residual_000.safetensors").read_bytes())
    (tmp_path / "residual_001.safetensors").write_bytes((tmp_path / "residual_000.safetensors").read_bytes())
    _, _, (again, _) = run(described, tokens, tmp_path)
    assert all(again[layer].read_bytes() == captured[layer].read_bytes() for layer in (1, 2))


def test_the_state_behind_two_layers_stays_for_another_copy_of_the_job_and_no_more(
    described, tokens, tmp_path, monkeypatch
):
    there = {}

    def run_layer(layer, hidden, arguments):
        there[layer.self_attn.layer_idx] = sorted(path.stem[-3:] for path in tmp_path.glob("residual_*"))
        return real(layer, hidden, arguments)

    real = module.run_layer
    monkeypatch.setattr(module, "run_layer", run_layer)
    run(described, tokens, tmp_path)
    assert there == {0: [], 1: ["000"], 2: ["000", "001"]}
    assert sorted(path.stem[-3:] for path in tmp_path.glob("residual_*")) == ["001", "002"]
