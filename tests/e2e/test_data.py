"""The demo's data: what stands in git is what its scripts make, and no text is in two parts."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_project import ROOT

DATA = ROOT / "data"
TEXTS = sorted([*(DATA / "calibration").glob("*.jsonl.gz"), *(DATA / "heldout").glob("*.jsonl.gz")])


def rows(path):
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def test_no_text_is_both_for_calibration_and_held_out():
    parts = {"calibration": set(), "heldout": set()}
    for path in TEXTS:
        parts[path.parent.name] |= {row["text"] for row in rows(path)}
    assert parts["calibration"] and parts["heldout"]
    assert not parts["calibration"] & parts["heldout"]


def test_the_task_has_a_hundred_pairs_of_twelve_paradigms():
    counts = {path.name: len(rows(path)) for path in (DATA / "blimp").glob("*.jsonl.gz")}
    assert len(counts) == 12
    assert set(counts.values()) == {100}


def test_the_readme_has_the_checksums_of_the_demo_model():
    told = (DATA / "README.md").read_text()
    for name in ("model.safetensors", "tokenizer.json"):
        digest = hashlib.sha256((DATA / "demo-moe" / name).read_bytes()).hexdigest()
        assert re.search(rf"sha256 of `{name}` \| `{digest}`", told), name


def test_the_scripts_make_the_committed_text_again(tmp_path):
    shared = os.environ.get("MERGEMOE_SHARED")
    if not shared:
        pytest.skip("needs MERGEMOE_SHARED, a folder with data/corpora and data/blimp: the text the demo was cut from")
    for name in ("prepare.py", "passages.py"):
        shutil.copyfile(DATA / name, tmp_path / name)
    source = Path(shared, "data")
    command = [sys.executable, "prepare.py", "--text", source / "corpora", "--blimp", source / "blimp"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    made = {path.relative_to(tmp_path): rows(path) for path in tmp_path.rglob("*.jsonl.gz")}
    assert made == {path.relative_to(DATA): rows(path) for path in DATA.rglob("*.jsonl.gz")}
