"""Every kind of result, changed at random: its reader refuses it, or reads the same numbers; the ledger names it."""

import re
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
from mergemoe.workflow.ledger import commands, verify_results

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
    """Files of a checkpoint, pages, cards, tables and metrics.json have their sha256 in a provenance.json instead."""
    inside = "models" in path.parts and path.name != "provenance.json"
    return inside or path.name == "metrics.json" or path.suffix not in READERS


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    return shutil.copytree(finished, tmp_path_factory.mktemp("mutated") / "project")


@pytest.fixture(scope="module")
def results(project):
    return project / "results"


def visible(results):
    paths = (path for path in results.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(results).parts))


def test_no_change_of_an_artifact_is_taken_for_right(results):
    files = [path for path in visible(results) if not listed_elsewhere(path)]
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


def test_no_change_of_a_listed_file_passes_the_ledger_or_the_reader_of_a_checkpoint(project, results):
    claims = commands.ask_ledger(project)["claims"]
    assert verify_results.check_results(project, claims) == []
    files = [path for path in visible(results) if listed_elsewhere(path)]
    kinds = sorted({(path.relative_to(results).parts[0], path.suffix) for path in files})
    assert {("models", ".safetensors"), ("cards", ".md"), ("report", ".html"), ("metrics.json", ".json")} <= {*kinds}
    counts, wrong = Counter(), []
    for draw in chance.rounds("mutated listed files", least=2 * len(kinds)):
        kind = draw.choice(kinds)
        path = draw.choice([path for path in files if (path.relative_to(results).parts[0], path.suffix) == kind])
        whole = path.read_bytes()
        siblings = [other.read_bytes() for other in files if other.suffix == path.suffix and other != path]
        how, content = chance.mutated(whole, draw, siblings)
        if content == whole:
            counts["the same bytes"] += 1
            continue
        chance.write_unseen(path, content)
        name, seen = str(path.relative_to(project)), "named"
        try:
            if name not in {fault.path for fault in verify_results.check_results(project, claims)}:
                seen = "missed by the ledger"
            if kind[0] == "models":
                listed = store.read_json(path.parent / "provenance.json")["files"]
                with pytest.raises(ArtifactError, match=re.escape(path.name)):
                    store.check_files(path.parent, listed)
        except Exception as error:
            seen = f"raw {type(error).__name__}"
        except pytest.fail.Exception:
            seen = "missed by the reader"
        counts[seen] += 1
        if seen != "named":
            wrong.append((name, how, seen))
        chance.write_unseen(path, whole)
    chance.tell("mutated listed files", counts)
    assert not wrong, wrong[:20]
