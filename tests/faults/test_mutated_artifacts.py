"""Every kind of artifact, changed at random: its reader refuses it, or reads the same numbers."""

import resource
import shutil
import time
from collections import Counter

import chance
import pytest
import torch

from mergemoe.artifacts import digests, provenance, store
from mergemoe.calibration.activation_file import Reader
from mergemoe.errors import ArtifactError

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]

DATASETS = ("hidden", "expert_index", "expert_weight", "router_logits")
SLOW = 5.0  # seconds


def activations(path):
    with Reader(path) as reader:
        whole = len(reader.held)
        return {name: reader.read(name, 0, whole) for name in DATASETS} | {"held": reader.held}


def equal(one, other):
    if isinstance(one, dict) and one and all(isinstance(part, torch.Tensor) for part in one.values()):
        return one.keys() == other.keys() and all(
            part.dtype == other[name].dtype and torch.equal(part, other[name]) for name, part in one.items()
        )
    return one == other


READERS = {".json": store.read_json, ".safetensors": store.read_tensors, ".h5": activations}
HEADS = {"digest": digests.digest_artifact, "provenance": provenance.read_provenance}


def listed_elsewhere(path):
    """Weights and settings of a checkpoint, and metrics.json, have their sha256 in a provenance.json instead."""
    return "models" in path.parts and path.name != "provenance.json" or path.name == "metrics.json"


@pytest.fixture(scope="module")
def results(finished, tmp_path_factory):
    return shutil.copytree(finished / "results", tmp_path_factory.mktemp("mutated") / "results")


def test_no_change_of_an_artifact_is_taken_for_right(results):
    files = [path for path in results.rglob("*") if path.suffix in READERS and not listed_elsewhere(path)]
    kinds = {suffix: [path for path in files if path.suffix == suffix] for suffix in READERS}
    counts, wrong = Counter(), []
    for draw in chance.rounds("mutated artifacts", least=60):
        path = draw.choice(kinds[draw.choice(list(kinds))])
        whole = path.read_bytes()
        siblings = [other.read_bytes() for other in kinds[path.suffix] if other != path]
        how, content = chance.mutated(whole, draw, siblings)
        expected = READERS[path.suffix](path)
        chance.write_unseen(path, content)
        for what, read in {"numbers": READERS[path.suffix], **HEADS}.items():
            began = time.monotonic()
            try:
                found = read(path)
                fine = what != "numbers" or equal(expected, found)
                seen = "same numbers" if fine else "wrong numbers"
            except ArtifactError as error:
                assert str(path) in str(error)
                seen = "refused"
            except Exception as error:
                seen = f"raw {type(error).__name__}"
            if time.monotonic() - began > SLOW:
                seen = "slow"
            counts[seen] += 1
            if seen not in {"refused", "same numbers"}:
                wrong.append((str(path.relative_to(results)), how, what, seen))
        chance.write_unseen(path, whole)
    chance.tell("mutated artifacts", counts)
    assert not wrong, wrong[:20]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3_000_000  # kB; nothing tried to read what is not there
