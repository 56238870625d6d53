"""Artifacts: written whole or not at all, the same bytes twice, checked when read."""

import os

import chance
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file

from mergemoe.artifacts import atomic, digests, provenance, store
from mergemoe.errors import ArtifactError, UserError

MADE = {"stage": "solve", "params": {"ridge": 0.0}, "inputs": {"a": "b"}, "code": "c"}
TENSORS = {"w": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3), "n": torch.tensor([1, 2])}


def test_what_was_written_is_read_and_carries_its_provenance(tmp_path):
    store.write_json(tmp_path / "a.json", {"x": [1, 2.5]}, MADE)
    whole = store.read_json(tmp_path / "a.json")
    assert whole["x"] == [1, 2.5]
    assert whole["provenance"] == store.sealed(MADE, digests.digest_json({"x": [1, 2.5]}))
    store.write_tensors(tmp_path / "t.safetensors", TENSORS, MADE)
    for name, tensor in store.read_tensors(tmp_path / "t.safetensors").items():
        assert torch.equal(tensor, TENSORS[name])


def test_the_same_content_is_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        store.write_tensors(tmp_path / f"{name}.safetensors", TENSORS, MADE)
        store.write_json(tmp_path / f"{name}.json", {"b": 1, "a": 2}, MADE)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


DTYPES = [getattr(torch, name) for name in digests.TORCH.values()]
SHAPES = st.lists(st.integers(0, 3), max_size=3)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text("ab.é", min_size=1, max_size=4), st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=4))
def test_the_digest_of_a_file_is_that_of_its_tensors(tmp_path, drawn):
    tensors = {name: (torch.rand(shape) * 9).to(dtype) for name, (dtype, shape) in drawn.items()}
    store.write_tensors(tmp_path / "t.safetensors", tensors, MADE)
    assert digests.digest_tensor_file(tmp_path / "t.safetensors") == digests.digest_tensors(tensors)


@pytest.mark.parametrize("name", ["a.json", "t.safetensors"])
def test_every_flipped_bit_of_the_payload_and_every_cut_is_noticed(tmp_path, name):
    path = tmp_path / name
    if name == "a.json":
        store.write_json(path, {"x": 12345}, MADE)
        read, where = store.read_json, path.read_bytes().index(b"12345")
    else:
        store.write_tensors(path, TENSORS, MADE)
        read, where = store.read_tensors, path.stat().st_size - 4
    whole = path.read_bytes()
    for bit in range(8):
        flipped = bytearray(whole)
        flipped[where] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError, match=f"{name} .*run `snakemake` again, which rebuilds it"):
            read(path)
    for length in (0, 5, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=name):
            read(path)


def test_an_edited_provenance_and_another_layers_file_are_named(tmp_path):
    path = tmp_path / "a.json"
    store.write_json(path, {"layer": 3}, MADE)
    assert store.read_json(path, 3)["layer"] == 3
    with pytest.raises(ArtifactError, match="belongs to layer 3, not 4"):
        store.read_json(path, 4)
    path.write_text(path.read_text().replace('"ridge": 0.0', '"ridge": 7.5'))
    with pytest.raises(ArtifactError, match="digest differs"):
        store.read_json(path)
    with pytest.raises(ArtifactError, match="b.json is missing"):
        store.read_json(tmp_path / "b.json")


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "results" / "solve" / "a.txt"
    with atomic.atomic(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic.atomic(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list((tmp_path / "results" / ".tmp").iterdir()) == []


def test_a_folder_takes_the_place_of_an_older_one_whole(tmp_path):
    path = tmp_path / "results" / "models" / "m"
    for name in ("first", "second"):
        with atomic.atomic(path) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [file.name for file in path.iterdir()] == ["second"]


def test_the_sweep_takes_only_what_dead_jobs_left(tmp_path):
    home = tmp_path / "results" / ".tmp"
    home.mkdir(parents=True)
    host = os.uname().nodename
    dead, alive, other = (home / f"a.json.{owner}" for owner in (f"{host}.4194305", f"{host}.{os.getpid()}", "else.7"))
    for path in (dead, alive, other):
        path.touch()
    atomic.sweep(tmp_path / "results")
    assert sorted(home.iterdir()) == sorted([alive, other])


def test_a_file_is_hashed_again_once_it_has_changed(tmp_path):
    path = tmp_path / "a"
    path.write_text("a")
    before = digests.sha256_once(path)
    assert before == digests.sha256(path)
    chance.write_unseen(path, b"b")
    assert digests.sha256_once(path) == digests.sha256(path) != before


def test_recorded_files_are_compared(tmp_path):
    (tmp_path / "a").write_text("a")
    recorded = {"a": digests.sha256(tmp_path / "a")}
    store.check_files(tmp_path, recorded)
    with pytest.raises(ArtifactError, match="b is missing"):
        store.check_files(tmp_path, {"b": "0"})
    (tmp_path / "a").write_text("b")
    with pytest.raises(ArtifactError, match="sha256 differs.*Delete it"):
        store.check_files(tmp_path, recorded)
    with pytest.raises(ArtifactError, match="sha256 differs.*Put the old file back"):
        store.check_files(tmp_path, recorded, original=True)


def test_numbers_that_json_cannot_hold_are_not_written(tmp_path):
    with pytest.raises(UserError, match="a.json is not written: a number in it is NaN or infinite"):
        store.write_json(tmp_path / "a.json", {"x": float("nan")}, MADE)
    assert not (tmp_path / "a.json").exists()


def test_an_artifact_can_be_read_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        store.write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, MADE)
        with atomic.atomic(tmp_path / "folder") as folder:
            folder.mkdir()
            save_file({"a": torch.ones(2)}, folder / "a.safetensors")
    finally:
        os.umask(before)
    for path in ("a.safetensors", "folder/a.safetensors"):
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o644


RIGHT = [
    ("results/layout/m.json", "results/layout/m.json"),
    ("results/solve/m/layer_001.safetensors", "results/solve/m/layer_001.json"),  # of a pair
    ("results/capture/m/c", "results/capture/m/c/layer_001.safetensors"),  # of a folder
    ("results/layout/m.json", "elsewhere/m.json"),
]
WRONG = [
    ("results/layout/m.json", "results/layout/n.json", "is a copy of results/layout/m.json, put in its place"),
    ("results/solve/m/layer_002.safetensors", "results/solve/m/layer_001.safetensors", "is a copy of results/solve/m"),
    ("results/solve/m/layer_002.safetensors", "results/solve/m/layer_001.json", "is a copy of results/solve/m"),
    ("results/capture/m/c", "results/capture/m/c/layer_002.safetensors", "belongs to layer 1, not 2"),
]


@pytest.mark.parametrize(("made_as", "put_at", "words"), [*((*one, None) for one in RIGHT), *WRONG])
def test_every_reader_refuses_an_artifact_in_anothers_place(tmp_path, made_as, put_at, words):
    path, made = tmp_path / put_at, {**MADE, "path": made_as, "layer": 1}
    if path.suffix == ".json":
        store.write_json(path, {"layer": 1}, made)
    else:
        store.write_tensors(path, {"a": torch.ones(2)}, made)
    for read in (store.read_json if path.suffix == ".json" else store.read_tensors, provenance.read_provenance):
        if words is None:
            read(path)
        else:
            with pytest.raises(ArtifactError, match=words):
                read(path)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "chat_template.jinja", "below/a.jinja", "a link"])
def test_a_file_that_is_not_listed_is_refused_in_a_whole_folder(name, tmp_path):
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    for file in ("a", ".snakemake_timestamp", "provenance.json"):
        (folder / file).touch()
    recorded = {"a": digests.sha256(folder / "a")}
    store.check_whole(folder, recorded)
    if name == "a link":
        (folder / name).symlink_to(tmp_path)
    else:
        (folder / name).touch()
    with pytest.raises(ArtifactError, match=f"{name} was not written by the job that made {folder}"):
        store.check_whole(folder, recorded)
