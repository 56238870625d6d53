"""The benchmark of speed: its statistics on known times, and one small run of it."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_project import ROOT

spec = importlib.util.spec_from_file_location("speed", ROOT / "benchmarks" / "speed.py")
assert spec and spec.loader
speed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(speed)


def test_noise_that_both_of_a_pair_have_cancels_in_the_ratio():
    noise = np.random.default_rng(1).uniform(1, 10, 41)
    found = speed.summary(np.stack([noise, noise / 1.25], 1), tokens=100)
    assert found["ratio"] == pytest.approx(1.25)
    assert found["interval"] == pytest.approx([1.25, 1.25])
    low, middle, high = found["tokens_per_second"]["full"]
    assert middle == pytest.approx(100 / np.median(noise))
    assert low < middle < high


def test_the_interval_holds_the_true_ratio_and_narrows_with_more_pairs():
    drawn = np.random.default_rng(2).lognormal(0, 0.1, 400)
    few, many = (speed.summary(np.stack([drawn[:n], np.ones(n)], 1), 1) for n in (25, 400))
    for one in (few, many):
        assert one["interval"][0] < 1 < one["interval"][1]
        assert one["interval"][0] <= one["ratio"] <= one["interval"][1]
    assert np.ptp(many["interval"]) < np.ptp(few["interval"]) / 2


def test_the_two_take_turns_and_each_goes_first_as_often_as_the_other():
    said = []
    times = speed.paired(lambda: said.append("f"), lambda: said.append("c"), 4)
    assert "".join(said[2:]) == "cffccffc" and times.shape == (4, 2)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_it_measures_and_writes_only_what_it_is_told_to(tiny, tmp_path):
    out = tmp_path / "speed.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py"), str(tiny), str(tiny), "--pairs", "3"]
    done = subprocess.run([*command, "--loads", "1", "--out", str(out)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["what"]["pairs"] == 3 and found["machine"]["threads"] == 1
    for kind in ("prefill", "decode"):
        assert 0 < found[kind]["interval"][0] <= found[kind]["ratio"] <= found[kind]["interval"][1]
    assert found["peak_bytes"]["full"]["median"] > 1e8 and found["load_seconds"]["compact"]["min"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
    assert "compact/full" in done.stdout
