"""What an artifact says of its making: read without its payload, held against disk and claims."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mergemoe.artifacts import digests as payloads
from mergemoe.artifacts import provenance, store, verify
from mergemoe.errors import ArtifactError
from mergemoe.workflow.ledger import dvc_lock

PATH = "results/cluster/m/c/half/layer_001.json"
CLAIM = {"stage": "cluster", "params": {"experts": 4, "by": "weights"}, "code": "1"}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with a text and two artifacts, of which the second was made from both."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text("{}\n")
    made = {"stage": "profile", "path": "results/profile/p.json", "params": {}, "code": "1"}
    store.write_json("results/profile/p.json", {"usage": [1, 2]}, {**made, "inputs": digests("text.jsonl")})
    store.write_json(PATH, {"layer": 1}, {**CLAIM, "path": PATH, "inputs": digests("text.jsonl", made["path"])})
    return tmp_path


def digests(*paths):
    return {path: provenance.content_digest(path) for path in paths}


def test_content_is_the_payloads_and_not_what_an_artifact_says_of_its_making(root):
    before = provenance.content_digest("results/profile/p.json")
    store.write_json("results/profile/p.json", {"usage": [1, 2]}, {"stage": "x", "inputs": {}, "code": "2"})
    assert provenance.content_digest("results/profile/p.json") == before
    store.write_json("results/profile/p.json", {"usage": [1, 3]}, {"stage": "x", "inputs": {}, "code": "2"})
    assert provenance.content_digest("results/profile/p.json") != before
    assert provenance.content_digest("text.jsonl") == payloads.sha256("text.jsonl")


def test_every_kind_of_file_says_its_making(root, captured):
    tensors = root / "results/solve/l.safetensors"
    store.write_tensors(tensors, {"a": torch.ones(2, dtype=torch.bfloat16)}, {"stage": "solve", "inputs": {}})
    assert provenance.read_provenance(tensors)["stage"] == "solve"
    activations = root / "results" / captured[1].name
    activations.write_bytes(captured[1].read_bytes())
    assert provenance.read_provenance(activations)["stage"] == "capture"
    save_file({"a": np.ones(2)}, root / "results/model.safetensors")
    assert provenance.read_provenance(root / "results/model.safetensors") is None
    assert provenance.read_provenance("text.jsonl") is None


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({}, None),
        ({"params": {"experts": 2, "by": "weights"}}, "was made with experts: 4, and params.yaml asks for 2"),
        ({"params": {"experts": 4}}, 'was made with by: "weights", and params.yaml asks for null'),
        ({"code": "2"}, "was made by other code of the stage cluster than there is now"),
        ({"stage": "solve"}, "was made by the stage cluster, not solve"),
    ],
)
def test_an_artifact_is_held_against_its_claim(root, claim, message):
    claims = {PATH: CLAIM | claim}
    if message is None:
        verify.check_input(PATH, claims, {})
        assert verify.is_current(
            PATH, {**claims, "results/profile/p.json": {**CLAIM, "stage": "profile", "params": {}}}
        )
    else:
        with pytest.raises(ArtifactError, match=f"^{PATH} {message}.*--forcerun {PATH}` makes it again"):
            verify.check_input(PATH, claims, {})


def test_an_artifact_of_no_run_or_in_anothers_place_is_named(root):
    with pytest.raises(ArtifactError, match="belongs to no run in params.yaml"):
        verify.check_input(PATH, {}, {})
    other = PATH.replace("001", "002")
    (root / other).write_bytes((root / PATH).read_bytes())
    with pytest.raises(ArtifactError, match=f"{other} is a copy of {PATH}"):
        verify.check_input(other, {PATH: CLAIM, other: CLAIM}, {})


def test_what_an_artifact_was_made_from_must_be_what_is_there(root):
    made = provenance.read_provenance(PATH)
    verify.check_links(PATH, made["inputs"], root, {})
    (root / "text.jsonl").write_text("[]\n")
    with pytest.raises(ArtifactError, match=f"{PATH} was made from another text.jsonl than there is now"):
        verify.check_links(PATH, made["inputs"], root, {})
    (root / "text.jsonl").unlink()
    with pytest.raises(ArtifactError, match=f"{PATH} was made from text.jsonl, which is missing"):
        verify.check_links(PATH, made["inputs"], root, {})
    verify.check_input(PATH, {PATH: CLAIM}, {})  # a job does without it
    store.write_json("results/profile/p.json", {"usage": [2, 2]}, {"stage": "profile", "inputs": {}, "code": "1"})
    with pytest.raises(ArtifactError, match="was made from another results/profile/p.json than there is now"):
        verify.check_input(PATH, {PATH: CLAIM}, {})


def test_provenance_that_was_changed_is_named(root):
    whole = json.loads((root / PATH).read_text())
    whole["provenance"]["code"] = "2"
    (root / PATH).write_text(json.dumps(whole))
    with pytest.raises(ArtifactError, match=f"{PATH} does not hold what was written"):
        provenance.read_provenance(PATH)


def test_a_folder_has_dvcs_hash(tmp_path):
    # As dvc 3.67.1 wrote it for these files; paths are sorted as text.
    for name, text in {"b/x.txt": "one", "b.txt": "two", "a": "three"}.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    before = dvc_lock.dvc_digest(tmp_path / "out")
    (tmp_path / "out" / ".snakemake_timestamp").touch()
    assert dvc_lock.dvc_digest(tmp_path / "out") == before == "08d7f7d18d9449c6ec95773e3be426cb.dir"
    assert dvc_lock.dvc_digest(tmp_path / "nothing") is None
