"""The benchmark at equal bytes: its parameters, its points over the seeds, its envelope and its picture."""

import importlib.util
import json
import xml.etree.ElementTree as ET

import pytest
from project import ROOT

from mergemoe.workflow.config.params import read_params

spec = importlib.util.spec_from_file_location("frontier_bench", ROOT / "benchmarks" / "frontier.py")
frontier = importlib.util.module_from_spec(spec)
spec.loader.exec_module(frontier)
envelope = frontier.envelope


@pytest.mark.parametrize("piece", frontier.PIECES)
def test_a_piece_has_every_number_of_bits_without_and_with_a_refine(piece):
    runs = read_params(frontier.params(piece, 1)).all_runs()
    model, method, share = frontier.PIECES[piece]
    fitted = 1 if method == frontier.FULL else 2
    assert len(runs) == fitted * (1 + len(frontier.QUANTIZE))
    names = {"cost/bytes": 2e6, "fidelity/kl": 0.1, "fidelity/perplexity": 40.0, "blimp/acc": 0.7}
    found = {"full": {}, "runs": {run.subject: names for run in runs}}
    points = [point for point, seed in frontier._runs(found) if seed == 1]
    lines = {method} if method == frontier.FULL else {method, f"{method}+tuned"}
    assert {(p.method, p.share, p.bits) for p in points} == {
        (line, share, bits) for line in lines for bits in ("16", *frontier.QUANTIZE)
    }


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Two seeds of a piece, as `keep` would have them."""
    monkeypatch.setattr(frontier, "FOLDER", tmp_path / "frontier")
    (tmp_path / "results").mkdir()
    for seed in (0, 2):
        runs = read_params(frontier.params("demo_slim_50", seed)).all_runs()
        scores = {"cost/bytes": 4e6, "fidelity/kl": 0.1 + seed, "fidelity/perplexity": 40.0, "blimp/acc": 0.7}
        metrics = {"demo": {"full": scores, "runs": {run.subject: scores for run in runs}}}
        (tmp_path / "results/metrics.json").write_text(json.dumps(metrics))
        frontier.keep("demo_slim_50", tmp_path)
    return tmp_path


def test_what_is_kept_is_not_measured_again_and_counts_as_the_mean(kept):
    assert frontier.left("demo_slim_50") == [1] and frontier.left("demo_slim_25") == [0, 1, 2]
    points = frontier.points("demo")
    assert {(point.kl, point.seeds) for point in points} == {(1.1, 2)} and len(points) == 2 * (
        1 + len(frontier.QUANTIZE)
    )
    assert {point.bits for point in points} == {"16", *frontier.QUANTIZE}
    text = "\n".join(frontier.table())
    assert "demo-moe (4.00 MB" in text and "| slim+tuned, 50% | 4.00, 1.1 |" in text


def test_the_picture_is_xml_with_a_line_per_name_and_the_envelope():
    points = [
        frontier.Point(method, "50", bits, size * (1 + place), 0.1 / size + place, 1, 1, 1)
        for place, method in enumerate(["full", "a<b", *"cdefghij"])
        for bits, size in (("8", 8e6), ("4", 4e6))
    ]
    root = ET.fromstring(envelope.picture(points))
    of = {kind: root.findall(f"{{http://www.w3.org/2000/svg}}{kind}") for kind in ("polyline", "circle", "text")}
    assert len(of["polyline"]) == 10 + 1 and len(of["circle"]) == 20
    assert {"a<b, 50%", "full", "MB of the checkpoint"} <= {text.text for text in of["text"]}
