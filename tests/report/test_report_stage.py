"""The report through its real entry point, on a synthetic study."""

import csv
import json
import re
import subprocess
import sys

import pytest
import synthetic
import yaml
from huggingface_hub import ModelCard, metadata_load
from plotly.offline import get_plotlyjs_version
from report_stage import report

from mergemoe.compressed import checkpoint_card
from mergemoe.report import metrics
from mergemoe.report.page import PARTS, PLOTLY

Q4 = {"by": "round", "format": "Q4_0", "rest": "none"}  # keys that the card of a quantized run reads


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    results = synthetic.build(folder / "results")
    for out in ("first", "second"):
        done = report(results, folder / out)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def page(made):
    return (made / "first/report/index.html").read_text()


def block(page: str, name: str):
    return json.loads(re.search(rf'<script type="application/json" {name}[^>]*>(.*?)</script>', page)[1])


def view(page: str, plot: str, key: str):
    content = block(page, f'data-plot="{plot}"')
    return content["figures"][content["views"][key]]


def test_twice_made_is_the_same_to_the_byte(made):
    first, second = made / "first", made / "second"
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 5 + len(PARTS) + len(synthetic.RUNS)
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_the_page_holds_the_numbers_of_metrics_json(made, page):
    gathered = json.loads((made / "first/metrics.json").read_text())
    assert gathered == metrics.gather_scores(made / "results", synthetic.RUNS, synthetic.TASKS)
    assert block(page, 'id="metrics"') == gathered
    perplexity = view(page, "quality-demo-2", "fidelity/perplexity")
    drawn = {trace["name"]: trace["y"][0] for trace in perplexity["data"] if trace["mode"] == "markers"}
    assert drawn.pop("full") == gathered["demo"]["full"]["fidelity/perplexity"]
    assert drawn == {name: run["fidelity/perplexity"] for name, run in gathered["demo"]["runs"].items()}
    for run in gathered["demo"]["runs"].values():
        assert f'title="{run["fidelity/kl"]}"' in page


def test_the_page_asks_for_nothing_from_outside(page):
    assert re.findall(r"""\b(?:src|href|action)\s*=\s*["'](?!data:|#)[^"']*""", page.partition("<script>")[0]) == []
    assert "default-src 'none'" in page
    assert page.count("<script>") == 2  # plotly once, and ours


def test_the_page_names_its_sources(made, page):
    provenance = block(page, 'id="provenance"')
    assert provenance["params"] == synthetic.CFG
    assert "results/scores/demo/full/blimp.json" in provenance["inputs"]
    assert str(made) not in page


def test_the_winner_and_its_rule_are_told(page):
    assert "<b>mixed/quarter/mergemoe</b><span>best of the smallest" in page.replace("<wbr>", "")
    assert "lowest KL to the full model on held-out text" in " ".join(page.split())
    assert "mergemoe.load(&#34;results/models/demo/mixed/quarter/mergemoe&#34;)" in page


def test_a_run_that_leaves_its_first_layer_as_it_is_is_still_of_its_method(tmp_path):
    results = synthetic.build(tmp_path / "results")
    first = results / "solve/demo/mixed/half/mergemoe/layer_000.json"
    record = json.loads(first.read_text()) | {"method": None, "output_error": {"fit": 0.0, "heldout": 0.0}}
    synthetic.write(first, {key: value for key, value in record.items() if key != "provenance"})
    assert report(results, tmp_path).returncode == 0
    errors = view((tmp_path / "report/index.html").read_text(), "errors-demo", "mergemoe")
    assert {trace["name"] for trace in errors["data"]} >= {"mixed/half/mergemoe", "mixed/quarter/mergemoe"}


def test_a_missing_score_stops_the_report_and_is_named(tmp_path):
    results = synthetic.build(tmp_path / "results")
    (results / "scores/demo/full/fidelity.json").unlink()
    done = report(results, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {results}/scores/demo/full/fidelity.json is missing")
    assert not (tmp_path / "out").exists()


def test_a_card_tells_scores_next_to_the_full_models(made):
    card = (made / "first/cards/demo/mixed/half/mergemoe.md").read_text()
    assert "| blimp/acc | 0.701 ± 0.013 | 0.685 ± 0.014 |" in card
    assert "| fidelity/kl | – | 0.250 ± 0.0063 |" in card
    assert "base_model: demo-moe\n" in card
    assert "Measured on blimp (version 2.0, 1,200 samples), fidelity (16,320 tokens)." in card
    provenance = json.loads(metadata_load(made / "first/cards/demo/mixed/half/mergemoe.md")["provenance"])
    assert "results/scores/demo/mixed/half/mergemoe/blimp.json" in provenance["inputs"]
    assert "results/scores/demo/mixed/half/average/blimp.json" not in provenance["inputs"]


def test_the_hub_reads_the_scores_of_a_card(made):
    loaded = ModelCard.load(made / "first/cards/demo/mixed/half/mergemoe.md").data
    gathered = json.loads((made / "first/metrics.json").read_text())["demo"]["runs"]["mixed/half/mergemoe"]
    found = {f"{one.dataset_type}/{one.metric_type}": one.metric_value for one in loaded.eval_results}
    assert found == {key: gathered[key] for key in metrics.columns({"": {"full": {}, "runs": {"": gathered}}})}
    assert {one.metric_args["stderr"] for one in loaded.eval_results if one.metric_type == "acc"} == {0.0139}
    assert (loaded.base_model, loaded.library_name) == ("demo-moe", "transformers")
    assert loaded.model_name == "demo/mixed/half/mergemoe" and "mergemoe" in loaded.tags


def test_a_card_names_the_sha256_of_every_file(made):
    card = (made / "first/cards/demo/mixed/half/mergemoe.md").read_text()
    listed = json.loads((made / "results/models/demo/mixed/half/mergemoe/provenance.json").read_text())["files"]
    assert all(f"| `{name}` | `{digest}` |" in card for name, digest in listed.items())


def test_the_tables_hold_the_numbers_of_metrics_json_and_of_the_solves(made):
    gathered = json.loads((made / "first/metrics.json").read_text())["demo"]
    rows = {row["run"]: row for row in csv.DictReader((made / "first/quality.csv").open())}
    assert rows.keys() == {"full", *gathered["runs"]}
    for run, scores in {"full": gathered["full"], **gathered["runs"]}.items():
        given = {key: float(value) for key, value in rows[run].items() if "/" in key and value}
        assert given == scores
        assert float(rows[run]["share"]) == scores["cost/bytes"] / gathered["full"]["cost/bytes"]
    lines = list(csv.DictReader((made / "first/errors.csv").open()))
    assert len(lines) == len(synthetic.RUNS) * synthetic.LAYERS
    runs = {run.subject: run for run in synthetic.RUNS}
    for line in lines:
        record = made / "results" / synthetic.layer_file(runs[line["run"]], int(line["layer"]))
        shown = {key: float(line[key]) if line[key] else None for key in ("fit", "heldout")}
        assert shown == json.loads(record.read_text())["output_error"]


def test_a_part_has_its_sections_and_fits_into_a_data_url(made, page):
    headings = re.findall("<h2>(.*?)</h2>", page)
    for part in PARTS:
        text = (made / f"first/report/{part}.html").read_text()
        assert set(re.findall("<h2>(.*?)</h2>", text)) < set(headings), part
        assert 4 * len(text.encode()) / 3 < 2 * 2**20


def test_the_card_beside_the_weights_is_the_same_text_without_scores(made):
    folder = made / "results/models/demo/mixed/half/mergemoe"
    parameters = json.loads((folder / "provenance.json").read_text())["provenance"]["params"]
    short, card = (
        checkpoint_card.unscored_card(parameters, stock=False),
        (made / "first/cards/demo/mixed/half/mergemoe.md").read_text(),
    )
    assert "Scores" not in short
    fronts, bodies = zip(*(text.removeprefix("---\n").split("\n---\n") for text in (short, card)), strict=True)
    assert set(fronts[0].splitlines()) < set(fronts[1].splitlines())
    assert bodies[1].startswith(bodies[0])


def test_a_card_asks_for_consent_only_where_code_of_ours_is_needed():
    parameters = {
        stage: {"name": stage, "path": "model", "method": "average", "steps": 8, "parts": ["up"], **Q4}
        for stage in checkpoint_card.STAGES
    }
    assert "trust_remote_code=True" in checkpoint_card.unscored_card(parameters, stock=False)
    assert "trust_remote_code" not in checkpoint_card.unscored_card(parameters, stock=True)
    solved = {stage: choice for stage, choice in parameters.items() if stage != "refine"}
    equation = "sum_x || sum_i t_i(x) E_i(x) - y(x) ||^2"
    assert equation in checkpoint_card.unscored_card(parameters, stock=True)
    assert equation not in checkpoint_card.unscored_card(solved, stock=True)


def test_the_card_of_a_refined_run_has_a_line_of_its_refine(made):
    names = [made / f"first/cards/demo/mixed/half/mergemoe{end}.md" for end in ("", "+tuned")]
    plain, refined = (card.read_text() for card in names)
    assert "| refine | tuned | by: layer, " in refined
    assert "| refine |" not in plain and "were fitted" not in plain
    assert "Then, in each layer, gate, up, down of its experts were fitted to the layer's original" in refined
    assert "(method `mergemoe + refine`)" in refined and "(method `mergemoe`)" in plain
    assert "Run `demo/mixed/half/mergemoe+tuned` made it" in refined
    inputs = json.loads(metadata_load(names[1])["provenance"])["inputs"]
    assert {
        f"results/{stage}/demo/mixed/half/mergemoe{end}/layer_000.json"
        for stage, end in (("solve", ""), ("refine", "/tuned"))
    } <= inputs.keys()


@pytest.mark.parametrize(("steps", "parts", "words"), [(0, ["up"], None), ("auto", ["down", "router"], "down, router")])
def test_a_card_says_what_a_refine_fitted(steps, parts, words):
    parameters = {
        stage: {"name": stage, "path": "model", "method": "average", **Q4} for stage in checkpoint_card.STAGES
    }
    parameters["refine"] |= {"steps": steps, "parts": parts}
    card = checkpoint_card.unscored_card(parameters, stock=True)
    assert f"{words} of its experts were fitted" in card if words else "were fitted" not in card


def test_a_card_has_the_license_of_the_original_and_its_relation_to_it():
    parameters = {
        stage: {"name": stage, "path": "model", "method": "average", **Q4} for stage in checkpoint_card.STAGES
    }
    parameters["refine"] |= {"steps": 0, "parts": ["up"]}
    stated = {"license": "other", "license_name": "tongyi", "license_link": "LICENSE"}
    front = yaml.safe_load(checkpoint_card.unscored_card(parameters, stock=True, **stated).split("---\n")[1])
    assert stated.items() <= front.items() and front["base_model_relation"] == "finetune"
    assert "license" not in yaml.safe_load(checkpoint_card.unscored_card(parameters, stock=True).split("---\n")[1])


def test_a_card_says_how_experts_were_quantized_and_that_files_are_larger():
    parameters = {
        stage: {"name": stage, "path": "model", "method": "average", **Q4} for stage in ("model", "solve", "quantize")
    }
    card = checkpoint_card.unscored_card(parameters, stock=True, made_by="A test")
    assert "rounded to the nearest values of GGUF's Q4_0" in card and "(method `average + quantize`)" in card
    parameters["quantize"] = {"name": "g3", "by": "gptq", "bits": 3, "group": 64, "rest": "none"}
    assert "rounded to 3 bits by GPTQ, in groups of 64" in checkpoint_card.unscored_card(parameters, True, "A test")


def test_an_absolute_path_of_the_model_stays_private():
    parameters = {
        stage: {"name": stage, "path": "/home/me/Model-A", "method": "average", "steps": 8, "parts": ["up"], **Q4}
        for stage in checkpoint_card.STAGES
    }
    card = checkpoint_card.unscored_card(parameters, stock=False)
    assert "base_model: Model-A\n" in card
    assert "/home" not in card


def test_cards_need_neither_torch_nor_transformers():
    code = (
        "import sys, mergemoe.compressed.checkpoint_card; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_bundle_is_of_the_version_that_python_plotly_makes_figures_for():
    assert f"plotly.js (basic - minified) v{get_plotlyjs_version()}\n" in PLOTLY[:200]
    assert "</script" not in PLOTLY
