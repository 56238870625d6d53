"""The page of an audit: all of the findings are on it, as text, and a browser draws them without a network."""

import argparse
import html
import json
import re

import pytest
from browsing import CONTRASTS, PHONE, opened

from mergemoe import cli
from mergemoe.workflow.comparison import verdict
from mergemoe.workflow.comparison.bounds import BOUNDS
from mergemoe.workflow.ledger import audit, audit_text
from mergemoe.workflow.ledger.audit_page import render_audit

STAGE = {
    "files": 4,
    "bytes": 48_000_000,
    "as_recorded": True,
    "kept_out": [],
    "other_bytes": [],
    "apart": {},
    "faults": [],
    "ties": [],
    "by_scores": [],
}
SAME = {"numbers": 139, "differ": {}}
MOVED = {
    "numbers": 139,
    "differ": {
        "demo/full fidelity/kl_stderr": [0.1, 0.10001, None],
        "demo/mixed/half/mergemoe fidelity/kl": [0.5, 0.5001, 0.1],
        "demo/mixed/half/mergemoe blimp/acc": [0.75, 0.7506, 0.01],
        "demo/mixed/half/select blimp/acc": [0.75, 0.7491, 0.01],
        "demo/mixed/half/mergemoe generation/loops": [0.25, None, 0.1],
    },
}
LAYERS = 3


def findings(stages=(), *, metrics=SAME, strays=(), edited=(), environment=(), **more):
    """Return findings of an audit: `stages` are {name: what is not as recorded}."""
    whole = {name: STAGE | dict(stages).get(name, {}) for name in BOUNDS}
    found = {"stages": whole, "strays": list(strays), "edited": list(edited), "metrics": metrics, **more}
    found["identical"] = not (stages or strays or metrics["differ"])
    judged = {"verdict": verdict.verdict(found), "reasons": verdict.reasons(found)}
    commit = {"revision": "903a617536fcbbf74841d7166fb12300a40a8d31", "uncommitted": []}
    return {**commit, "environment": list(environment), **found, **judged}


def test_a_record_that_is_not_the_committed_one_is_named():
    found = findings() | {"uncommitted": ["dvc.lock"]}
    assert "the record is not the committed one:\n  dvc.lock" in audit_text.format_audit(found)
    assert "Not as committed dvc.lock" in words(render_audit(found))


def layered(stage, size, decisions=()):
    """Return how a stage's files of three layers differ; decisions differ in the last."""
    paths = [f"results/{stage}/demo/mixed/half/layer_{layer:03d}.safetensors" for layer in range(LAYERS)]
    apart = {
        path: {"decisions": [], "numbers": {"down.N": size * (i + 1), "up.N": size}} for i, path in enumerate(paths)
    }
    apart[paths[-1]]["decisions"] = list(decisions)
    return {"as_recorded": False, "other_bytes": [f"results/{stage}"], "apart": apart}


WEIGHTS = "results/models/demo/mixed/half/mergemoe+tuned/model.safetensors"
CHECKPOINT = {"apart": {WEIGHTS: {"decisions": [], "numbers": {"mlp.experts.N.down": 2.5e-3}}}}
EQUIVALENT = findings(
    {"capture": layered("capture", 3e-7), "refine": layered("refine", 2e-3), "assemble": CHECKPOINT},
    metrics=MOVED | {"differ": dict(list(MOVED["differ"].items())[:4])},
    environment=["processor: AMD EPYC when recorded, Intel(R) Xeon(R) here"],
    edited=["mergemoe/moe/expert_forward.py"],
)
DIFFERENT = findings(
    {
        "solve": layered("solve", 0.2, ["expert_map"]) | {"ties": ["Experts 3 and 7 of layer 2 nearly tie"]},
        "calibrate": {"other_bytes": ["data/text.jsonl"], "as_recorded": False, "faults": ["tokens are <missing>"]},
    },
    metrics=MOVED,
    strays=["results/y.json belongs to no run"],
)
IDENTICAL = findings()


def words(page):
    """Return the text of a page, without tags and scripts, its blanks as single ones."""
    bare = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", page).replace("<wbr>", "")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).split())


def pictures(page):
    """Return the traces of the page's picture, none if there is none."""
    found = re.search(r'(?s)data-plot="apart"[^>]*>(.*?)</script>', page)
    return json.loads(found[1])["figures"][0]["data"] if found else []


@pytest.mark.parametrize("found", [IDENTICAL, EQUIVALENT, DIFFERENT], ids=lambda found: found["verdict"])
def test_the_page_has_the_verdict_and_a_sentence_to_quote(found):
    page = render_audit(found)
    quoted = f"Audit of 903a617536fc: {found['verdict']}. {audit_text.conclusion(found)}"
    assert f"<blockquote>{html.escape(quoted, quote=False)}</blockquote>" in page
    assert f"<title>Audit of 903a617536fc: {found['verdict']}</title>" in page


def test_findings_of_each_verdict_are_what_the_tests_take_them_for():
    assert [found["verdict"] for found in (IDENTICAL, EQUIVALENT, DIFFERENT)] == [
        "identical",
        "equivalent",
        "different",
    ]


@pytest.mark.parametrize("found", [IDENTICAL, EQUIVALENT, DIFFERENT], ids=lambda found: found["verdict"])
def test_the_page_loads_nothing(found):
    page = render_audit(found)
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", re.sub(r"(?s)<script\b.*?</script>", "", page))
    assert "@import" not in page and "url(" not in re.sub(r"(?s)<script\b.*?</script>", "", page)


@pytest.mark.parametrize("found", [EQUIVALENT, DIFFERENT], ids=lambda found: found["verdict"])
def test_every_reason_stage_difference_and_score_is_on_the_page(found):
    said = words(render_audit(found))
    assert "stage files MB bytes provenance layout" in said
    facts = [*found["reasons"], *found["environment"], *found["edited"]]
    for name, one in found["stages"].items():
        facts += [f"{name} 4 48.0", *one["other_bytes"], *one["ties"], *one["apart"]]
        for apart in one["apart"].values():
            facts += [f"{part} is another" for part in apart["decisions"]]
            facts += [f"{part} by {size:.1e}" for part, size in apart["numbers"].items()]
    facts += [" ".join(key.split()) for key in found["metrics"]["differ"]]
    assert [fact for fact in facts if fact not in said] == []


def test_scores_that_moved_come_first_and_the_rest_is_folded_away():
    page = render_audit(EQUIVALENT)
    shown, folded = page.split('aria-label="Other numbers"')
    table = words(shown.partition('aria-label="Scores"')[2])
    select = "demo/mixed/half/select blimp/acc 0.750 0.749 -0.000900 0.0900"
    assert f"{select} demo/mixed/half/mergemoe blimp/acc 0.750 0.751 0.000600 0.0600" in table
    assert "fidelity/kl" not in table
    assert "demo/mixed/half/mergemoe fidelity/kl 0.500 0.500 0.000100 0.00100" in words(folded)
    assert "demo/full fidelity/kl_stderr 0.100 0.100 1.00e-05 –" in words(folded)
    assert "generation/loops 0.250 – – –" in words(render_audit(DIFFERENT))


def test_the_picture_has_a_line_per_stage_over_the_layers_and_its_bound():
    drawn = {trace["name"]: trace for trace in pictures(render_audit(EQUIVALENT))}
    assert drawn.keys() == {"capture", "refine", "bound of capture", "bound of refine"}
    assert drawn["capture"]["x"] == [0, 1, 2] and drawn["capture"]["y"] == pytest.approx([3e-7, 6e-7, 9e-7])
    assert drawn["refine"]["y"] == pytest.approx([2e-3, 4e-3, 6e-3])
    assert drawn["refine"]["customdata"][1].endswith("half/layer_001.safetensors<br>down.N")
    assert drawn["bound of refine"]["y"] == [BOUNDS["refine"]] * 2


def test_a_layer_that_does_not_differ_is_a_gap():
    one = layered("solve", 1e-5)
    del one["apart"]["results/solve/demo/mixed/half/layer_001.safetensors"]
    line = pictures(render_audit(findings({"solve": one})))[0]
    assert line["y"] == pytest.approx([1e-5, None, 3e-5])


@pytest.mark.parametrize("size", [float("inf"), float("nan")])
def test_decisions_and_what_is_no_size_are_crosses(size):
    one = layered("solve", 1e-5, ["expert_map"])
    one["apart"]["results/solve/demo/mixed/half/layer_000.safetensors"]["numbers"]["down.N"] = size
    page = render_audit(findings({"solve": one}))
    line, _, *crosses = pictures(page)
    assert line["y"][0] == pytest.approx(1e-5)  # of `up.N`
    assert [(cross["x"], cross["marker"]["symbol"]) for cross in crosses] == [([0], "x"), ([2], "x")]
    assert "differs in more than numbers" in words(page)
    assert all(cross["y"][0] > max(line["y"]) for cross in crosses)


def test_a_file_of_no_single_layer_is_named_below_the_picture():
    assert f"Files of no single layer: assemble: 2.5e-03 ({WEIGHTS}, mlp.experts.N.down)" in words(
        render_audit(EQUIVALENT)
    )


def test_without_layers_there_is_no_picture():
    page = render_audit(findings({"assemble": CHECKPOINT}))
    assert pictures(page) == [] and 'class="plot' not in page
    assert f"Largest differences: assemble: 2.5e-03 ({WEIGHTS}, mlp.experts.N.down)" in words(page)


def test_all_stages_at_once_share_one_picture():
    found = findings({name: layered(name, bound / 9) for name, bound in BOUNDS.items() if bound})
    names = [trace["name"] for trace in pictures(render_audit(found))]
    assert names[:8] == [name for name, bound in BOUNDS.items() if bound]
    assert names[8:] == [
        "bound of capture, profile, cluster, evaluate",
        "bound of solve",
        "bound of refine, quantize, assemble",
    ]


def test_a_rerun_shows_where_paths_part():
    rerun = {name: {"differ": [], "other_payload": []} for name in BOUNDS}
    rerun["layout"]["differ"] = ["results/layout/demo.json"]
    solved = layered("solve", 1e-5)
    rerun["solve"] = {"apart": solved["apart"], "differ": list(solved["apart"]), "other_payload": list(solved["apart"])}
    rerun["report"] = {"differ": ["results/report/index.html"], "other_payload": ["results/report/index.html"]}
    found = findings(rerun, again={"identical": 812, "differ": 5}, parts_at="solve")
    found["stages"]["report"] = STAGE | rerun["report"]
    said = words(render_audit(found))
    assert "solve first stage whose rerun differs" in said
    assert "Of the rerun, 812 files are identical and 5 differ." in said
    assert "3: numbers by up to 3.0e-05" in said
    assert "results/layout/demo.json made by other code, same payload" in said
    assert "results/report/index.html another payload" in said


def test_without_a_rerun_paths_part_at_the_first_stage_whose_results_differ():
    found = findings({"layout": {"as_recorded": False}, "solve": layered("solve", 1e-5)})
    assert "solve first stage whose results differ" in words(render_audit(found))
    assert "none first stage whose results differ" in words(render_audit(IDENTICAL))


def test_near_ties_have_a_heading_only_if_there_are_some():
    assert "Near-ties Experts 3 and 7 of layer 2 nearly tie" in words(render_audit(DIFFERENT))
    assert "Near-ties" not in render_audit(findings({"solve": {"ties": []}}))


def test_more_reasons_than_a_glance_takes_in_are_folded_away():
    shown, folded = render_audit(findings(strays=[f"stray {i} belongs to no run" for i in range(40)])).split(
        "and 28 more"
    )
    assert "stray 11 " in shown and "stray 12 " not in shown
    assert "stray 12 " in folded and "stray 39 " in folded


EVIL = "<script>alert(1)</script>"


def evil():
    """Return findings whose every text is a script, or would end one."""
    path = f"results/solve/{EVIL}/layer_000.json"
    stage = {
        "apart": {path: {"decisions": [EVIL], "numbers": {f"{EVIL}2": 1.0}}},
        "faults": [EVIL],
        "other_bytes": [EVIL],
        "ties": [EVIL],
    }
    metrics = {"numbers": 1, "differ": {f"{EVIL} {EVIL}": [1.0, 2.0, 0.1], f"{EVIL} a": [1.0, 2.0, None]}}
    return findings({"solve": stage}, metrics=metrics, strays=[EVIL], edited=[EVIL], environment=[EVIL])


def test_text_is_no_code():
    page = render_audit(evil())
    assert "<script>alert" not in page and page.count("<script") == render_audit(EQUIVALENT).count("<script")
    assert words(page).count("alert(1)") > 10
    assert all("<script" not in json.dumps(trace) for trace in pictures(page))  # Plotly reads HTML in a hover


def test_the_command_writes_the_page_beside_the_json_and_names_both(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(audit, "audit_project", lambda *_: EQUIVALENT)
    cli.run_audit(argparse.Namespace(revision=None, rerun=False, environment=False, strict=False))
    folder = tmp_path / "logs/audit"
    assert json.loads((folder / "903a617536fc.json").read_text()) == EQUIVALENT
    assert (folder / "903a617536fc.html").read_text() == render_audit(EQUIVALENT)
    last = "(logs/audit/903a617536fc.json has all details, logs/audit/903a617536fc.html shows them)"
    assert capsys.readouterr().out.splitlines()[-1] == last


FOUND = {"identical": IDENTICAL, "equivalent": EQUIVALENT, "different": DIFFERENT, "evil": evil()}


@pytest.fixture(params=FOUND)
def file(request, tmp_path):
    """The page of findings, written."""
    path = tmp_path / "audit.html"
    path.write_text(render_audit(FOUND[request.param]), encoding="utf-8")
    return path


def test_it_opens_without_a_word_and_asks_for_nothing_but_itself(browser, file):
    with opened(browser, file) as (page, said, asked):
        for details in page.locator("summary").all():
            details.click()
        for head in page.locator("thead button:visible").all():
            head.click()
        assert page.locator(".plot:has(.main-svg)").count() == page.locator(".plot").count()
        assert said == [] and asked == [file.as_uri()]


def test_the_picture_is_drawn(browser, tmp_path):
    file = tmp_path / "audit.html"
    file.write_text(render_audit(EQUIVALENT), encoding="utf-8")
    with opened(browser, file) as (page, *_):
        assert page.locator("#apart .scatterlayer .trace").count() == 4
        assert page.locator("#apart .scatterlayer .point").count() == 2 * LAYERS


def test_on_a_phone_nothing_but_a_table_scrolls_sideways(browser, file):
    with opened(browser, file, PHONE) as (page, *_):
        for details in page.locator("summary").all():
            details.click()
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser, file, scheme):
    with opened(browser, file, scheme=scheme) as (page, *_):
        found = page.evaluate(CONTRASTS)
        faint = [one for one in found if one["contrast"] < (3 if re.fullmatch(r"[●■◆▲▼★✚⬟⬢]", one["text"]) else 4.5)]
        assert len(found) > 50 and faint == []
