"""The documentation names only what the project has, and the site's hook notices when it does not."""

import importlib.util
import shutil
import subprocess
import sys

import pytest
from tiny_project import ROOT

spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_files_functions_and_keys_that_exist(page):
    assert hooks.linked(page.read_text())[1] == []


@pytest.mark.parametrize(
    "mention, target",
    [
        ("least_squares.solve_down", "mergemoe.merging.least_squares.solve_down"),
        ("merging/solve.py", "mergemoe.merging.solve"),
        ("mergemoe/merging/solve.py", "mergemoe.merging.solve"),
        ("problem.Group.mean", "mergemoe.moe.problem.Group.mean"),
        ("mergemoe.load", "mergemoe.compressed.loading.load"),
    ],
)
def test_a_mention_becomes_a_link(mention, target):
    assert hooks.linked(f"See `{mention}`.") == (f"See [`{mention}`][{target}].", [])


@pytest.mark.parametrize(
    "mention",
    ["evaluate.heldout", "config.json", "torch.float32", "profiles/slurm/config.yaml", "tests/e2e/test_docs.py", "1.5"],
)
def test_what_the_reference_lacks_stays_as_it_is(mention):
    assert hooks.linked(f"See `{mention}`.") == (f"See `{mention}`.", [])


@pytest.mark.parametrize(
    "mention",
    [
        "least_squares.solve_up",
        "merging/solved_by.py",
        "mergemoe/merging/no_such.py",
        "tests/e2e/test_nothing.py",
        "evaluate.held_out",
        "main.main",
    ],
)
def test_an_unknown_mention_is_reported(mention):
    assert hooks.linked(f"See `{mention}`.")[1] == [mention]


def test_code_blocks_are_left_alone():
    text = "```\nsee `no_such.name`\n```"
    assert hooks.linked(text) == (text, [])


def test_the_strict_build_fails_for_an_unknown_function(tmp_path):
    for name in ("docs", "mergemoe", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md", "mkdocs.yml", "params.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    page = tmp_path / "docs" / "method.md"
    page.write_text(page.read_text().replace("`least_squares.solve_down`", "`least_squares.solve_up`"))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "method.md: `least_squares.solve_up`" in run.stderr
