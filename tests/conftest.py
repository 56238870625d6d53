"""Fixtures: a tiny random model, its captured activations, and finished copies of the project."""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import stages  # noqa: F401  # fixes MKL's code path, thread counts and offline mode before torch is imported

# isort: split
import pytest
import torch
from browsing import browser  # noqa: F401  # a fixture, one browser per test process
from filelock import FileLock
from hypothesis import settings
from project import commit, put_under_git, run
from tiny_project import copy_project, make_tiny, snakemake

from mergemoe.calibration.activation_file import Reader
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.models import layout
from mergemoe.models.layered_model import LayeredModel

HELDOUT = torch.tensor([0, 0, 1, 0, 0, 1])

settings.register_profile("no deadline", deadline=None)  # no test fails because the machine is slow
settings.load_profile("no deadline")


def pytest_collection_modifyitems(items):
    """Put the longest tests first, so that no process is left with them at the end."""
    long = ("demo", "workflow", "faults")
    items.sort(key=lambda item: next((i for i, name in enumerate(long) if item.get_closest_marker(name)), len(long)))


def pytest_collection_finish():
    """Leave all that was imported out of later collections of garbage: a streamed pass collects behind every layer."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Where every test must run (MERGEMOE_NO_SKIP), turn a skip into a failure, but for want of a GPU."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("MERGEMOE_NO_SKIP") and "gpu" not in item.keywords:
        report.outcome, report.longrepr = "failed", f"skipped where nothing may be: {call.excinfo.value}"


@pytest.fixture
def own_module_cache(tmp_path_factory, monkeypatch):
    """transformers copies the modeling files of checkpoints into a folder of this test's own."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny checkpoint folder."""
    return make_tiny(tmp_path_factory.mktemp("tiny") / "tiny-moe")


@pytest.fixture(scope="session")
def described(tiny) -> dict:
    """Its layout."""
    return layout.describe_layout(tiny)


@pytest.fixture(scope="session")
def tokens() -> dict[str, torch.Tensor]:
    """Six sequences of 40 tokens, one of them padded."""
    ids = torch.randint(3, 4096, (6, 40), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    mask = torch.ones_like(ids, dtype=torch.uint8)
    mask[1, 30:] = 0
    return {"input_ids": ids, "attention_mask": mask, "heldout": HELDOUT}


@pytest.fixture(scope="session")
def captured(described, tokens, tmp_path_factory) -> dict[int, Path]:
    """Its activations on those tokens: {layer: file}."""
    scratch = tmp_path_factory.mktemp("scratch")
    layered = LayeredModel(described["path"], torch.float32, torch.device("cpu"))
    batches = batches_of(tokens["input_ids"], tokens["attention_mask"], 80, torch.device("cpu"))
    return capture(layered, described, batches, tokens["heldout"], scratch, {"stage": "capture"})[0]


@pytest.fixture
def reader(captured):
    """The activations of layer 1."""
    with Reader(captured[1]) as opened:
        yield opened


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A project whose workflow has run; tests copy it before they change anything."""

    def make(folder: Path) -> None:
        done = snakemake(copy_project(folder))
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture(scope="session")
def recorded(finished, tmp_path_factory) -> Path:
    """A finished project under git and DVC, recorded and committed."""

    def make(folder: Path) -> None:
        project = put_under_git(finished, folder)
        run(project, "mergemoe", "record")
        commit(project, "Recorded")

    return made_once(tmp_path_factory, "recorded", make)


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a copy, this process's own, of a project that the first process to ask for it has made."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / name
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            making = tmp_path_factory.mktemp("making")
            make(making / "project")
            making.rename(shared)
    return shutil.copytree(shared / "project", tmp_path_factory.mktemp(name) / "project")
