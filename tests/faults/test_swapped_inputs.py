"""Every stage refuses an input that is a sibling's: another layer's, run's or task's file in its place."""

import re
import shutil
from collections import Counter
from pathlib import Path

import chance
import pytest
from tiny_project import snakemake

from mergemoe.artifacts import provenance

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    return shutil.copytree(finished, tmp_path_factory.mktemp("swapped") / "project")


def artifacts(project):
    """Return {path: its provenance} of what carries its own."""
    found = {}
    for path in sorted((project / "results").rglob("[!.]*")):
        if path.is_file() and (made := provenance.read_provenance(path)):
            found[str(path.relative_to(project))] = made
    return found


def reads(made):
    """Return (a job's artifact, an input of it) for every job and input below results/."""
    return [(path, name) for path, one in made.items() for name in one["inputs"] if name.startswith("results/")]


def test_a_siblings_file_is_refused_by_every_stage(finished, project):
    made = artifacts(project)
    pairs = [(path, name) for path, name in reads(made) if name in made and siblings(made, name)]
    alone = {"layout", "calibrate", "capture", "reference"}  # what they read has no sibling here
    assert {made[path]["stage"] for path, _ in pairs} >= {one["stage"] for one in made.values()} - alone
    by_stage = {}
    for path, name in pairs:
        by_stage.setdefault((made[path]["stage"], made[name]["stage"]), []).append((path, name))
    counts, todo = Counter(), []
    for draw in chance.rounds("swapped inputs", least=len(by_stage)):
        todo = todo or sorted(by_stage)
        stages = todo.pop()
        path, name = draw.choice(by_stage[stages])
        other = draw.choice(siblings(made, name))
        chance.write_unseen(project / name, (project / other).read_bytes())
        target = made[path]["path"]
        done = snakemake(project, "--forcerun", target, "--allowed-rules", made[path]["stage"], "--", target)
        said = logs(project) + done.stdout + done.stderr
        refused = done.returncode != 0 and re.search(rf"{re.escape(name)} (is a copy of|belongs to layer)", said)
        counts[f"{' of '.join(stages)} refused" if refused else f"{' of '.join(stages)} TAKEN"] += 1
        shutil.rmtree(project / "results")
        shutil.copytree(finished / "results", project / "results")
        assert refused, (path, name, other, said[-2000:])
    chance.tell("swapped inputs", counts)


def siblings(made, name):
    """Return the artifacts of the same stage and kind that are another layer's, run's or task's."""
    own = made[name]
    return [
        other
        for other, one in made.items()
        if one["stage"] == own["stage"]
        and Path(other).suffix == Path(name).suffix
        and (one["path"], one.get("layer")) != (own["path"], own.get("layer"))
    ]


def logs(project):
    return "".join(path.read_text() for path in (project / "logs").rglob("*.log"))
