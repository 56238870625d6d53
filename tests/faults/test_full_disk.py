"""A stage whose disk is full or read-only ends in one clear error, and ends complete when there is room again."""

import re
import resource
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import chance
import pytest
from project import run
from tiny_project import everything, snakemake

from mergemoe.artifacts import provenance

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]

PLENTY = "256m"
CLEAR = re.compile(
    r"^(?:error: )?\S.*(?:No space left|File too large|Read-only).*then run the same again"
    r"|^Write-protected output files for rule",  # Snakemake's own, of outputs that are there
    re.MULTILINE,
)
WAYS = ("full results", "full scratch", "read-only results", "read-only scratch", "small files")


def mount(*words):
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def disks(finished, tmp_path_factory):
    """A project whose results/ and scratch/ are small disks of their own, where this user may mount; and the ways."""
    project = shutil.copytree(finished, tmp_path_factory.mktemp("full") / "project")
    mounted = []
    for name in ("results", "scratch"):
        whole = project.parent / name
        (project / name).rename(whole)
        (project / name).mkdir()
        if mount("-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", project / name):
            mounted.append(project / name)
        shutil.copytree(whole, project / name, dirs_exist_ok=True)
    yield project, WAYS if len(mounted) == 2 else WAYS[-1:]
    for path in mounted:
        subprocess.run(["umount", "--lazy", path], check=True)


def outputs(project):
    """Return {stage: the files that it writes}."""
    found = {}
    for path in sorted((project / "results").rglob("[!.]*")):
        if path.is_file() and (made := provenance.read_provenance(path)):
            found.setdefault(made["stage"], set()).add(made["path"])
    return {stage: sorted(paths) for stage, paths in found.items()}


def limit(project, way, room):
    """Make a place full after so many bytes, or read-only."""
    how, _, name = way.partition(" ")
    if how == "full":
        used = shutil.disk_usage(project / name).used
        assert mount("-o", f"remount,size={max(used + room, 4096)}", project / name)
    if how == "read-only":
        assert mount("-o", "remount,ro", project / name)


def free(project, ways):
    for name in ("results", "scratch") if len(ways) > 1 else ():
        assert mount("-o", f"remount,rw,size={PLENTY}", project / name)


def smaller(size):
    """Return what limits the size of the files of a process and of what it starts."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_stage_without_a_place_to_write_says_so_and_can_be_run_again(disks, finished):
    project, ways = disks
    expected, made, counts = everything(project), outputs(project), Counter()
    todo = []
    for draw in chance.rounds("full disks", least=3):
        todo = todo or draw.sample(sorted(made), len(made))
        stage, way = todo.pop(), draw.choice(ways)
        targets = made[stage]
        size = 0
        for path in [Path(project, target) for target in targets]:
            size += sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        room = int(size * draw.random() ** 2)
        limit(project, way, room)
        options = {"preexec_fn": smaller(max(room, 1 << 14))} if way == "small files" else {}
        done = snakemake(project, "--forcerun", *targets, "--allowed-rules", stage, "--", *targets, **options)
        said = done.stdout + done.stderr
        free(project, ways)
        case = (stage, way, room, said[-4000:])
        left = everything(project)
        assert left.items() <= expected.items(), case
        if done.returncode == 0:
            counts[f"{way}: {stage} had room"] += 1
            assert left == expected, case
        else:
            assert CLEAR.search(said) and "Traceback" not in said, case
            counts[f"{way}: {stage} refused"] += 1
            again = snakemake(project, "--allowed-rules", stage, "--", *targets)
            assert again.returncode == 0, (case, (again.stdout + again.stderr)[-3000:])
            assert everything(project) == expected, case
        assert not list((project / "results").glob(".tmp/*")), case
        for name in ("results", "scratch"):
            for path in (project / name).iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.copytree(finished / name, project / name, dirs_exist_ok=True)
    chance.tell("full disks", counts)


@pytest.fixture(scope="module")
def small_disk(recorded, tmp_path_factory):
    """A recorded project on a small disk of its own."""
    disk = tmp_path_factory.mktemp("small")
    if not mount("-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", disk):
        pytest.skip("this user may not mount")
    yield shutil.copytree(recorded, disk / "project")
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_record_without_room_changes_nothing_and_can_be_made_again(small_disk):
    project, counts = small_disk, Counter()
    lock, cache = project / "dvc.lock", project / ".dvc/cache"
    whole, size = lock.read_text(), sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    older = re.sub("md5: [0-9a-f]", "md5: 0", whole)
    for draw in chance.rounds("records on a full disk", least=1):
        before = draw.choice([None, older])
        lock.unlink() if before is None else lock.write_text(before)
        shutil.rmtree(cache, ignore_errors=True)
        room = draw.choice([0, 4096, int(size * draw.random()), int(size * draw.random())])
        used = shutil.disk_usage(project).used
        assert mount("-o", f"remount,size={used + room}", project.parent)
        done = run(project, "mergemoe", "record", ok=False)
        assert mount("-o", f"remount,size={PLENTY}", project.parent)
        case = (before is None, room, (done.stdout + done.stderr)[-3000:])
        if done.returncode:
            assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr, case
            assert re.search("No space left|disk is full", done.stderr), case
            assert (lock.read_text() if lock.exists() else None) == before, case
            run(project, "mergemoe", "record")
        assert lock.read_text() == whole, case
        assert not [path for path in project.iterdir() if path.name.startswith(".dvc.")], case
        counts["refused" if done.returncode else "had room"] += 1
    chance.tell("records on a full disk", counts)
