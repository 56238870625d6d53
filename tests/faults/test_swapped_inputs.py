"""Every stage refuses an input that is a sibling's: another layer's, run's or task's file in its place."""

import shutil
from collections import Counter
from pathlib import Path

import chance
import pytest
from tiny_project import snakemake

from mergemoe.artifacts import provenance
from mergemoe.artifacts.stages import STAGES

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


def test_a_siblings_file_is_refused_by_every_stage(project):
    made = artifacts(project)
    pairs = [(path, name) for path, name in reads(made) if name in made and siblings(made, name)]
    assert {made[path]["stage"] for path, _ in pairs} >= {
        name for name in STAGES if name in {one["stage"] for one in made.values()} - {"layout", "calibrate", "capture"}
    } - {"reference"}
    by_stage = {}
    for path, name in pairs:
        by_stage.setdefault((made[path]["stage"], made[name]["stage"]), []).append((path, name))
    counts, todo = Counter(), []
    for draw in chance.rounds("swapped inputs", least=len(by_stage)):
        todo = todo or sorted(by_stage)
        stages = todo.pop()
        path, name = draw.choice(by_stage[stages])
        other = draw.choice(siblings(made, name))
        kept = {one: (project / one).read_bytes() for one in {path, name}}
        chance.write_unseen(project / name, (project / other).read_bytes())
        done = snakemake(project, "--forcerun", path, "--allowed-rules", made[path]["stage"], "--", path)
        said = done.stdout + done.stderr + logs(project)
        refused = done.returncode != 0 and f"{name} is a copy of {made[other]['path']}, put in its place" in said
        counts[f"{' of '.join(stages)} refused" if refused else f"{' of '.join(stages)} TAKEN"] += 1
        for one, content in kept.items():
            (project / one).parent.mkdir(parents=True, exist_ok=True)
            if (project / one).exists():
                chance.write_unseen(project / one, content)
            else:
                (project / one).write_bytes(content)
        assert refused, (path, name, other, said[-2000:])
    chance.tell("swapped inputs", counts)


def siblings(made, name):
    return [
        other
        for other, one in made.items()
        if one["stage"] == made[name]["stage"]
        and one["path"] != made[name]["path"]
        and Path(other).suffix == Path(name).suffix
    ]


def logs(project):
    return "".join(path.read_text() for path in (project / "logs").rglob("*.log"))
