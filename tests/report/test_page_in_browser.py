"""The report in a real browser: it opens from a file, sorts, switches, and can be read anywhere."""

import json
import re

import pytest
import synthetic
from browsing import CONTRASTS, DESKTOP, PHONE, opened
from report_stage import report

from mergemoe.report import score_plots
from mergemoe.report.metrics import shown as shown_as

SIDEWAYS = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study with generation, and its page."""
    folder = tmp_path_factory.mktemp("study")
    done = report(synthetic.build(folder / "results"), folder, synthetic.GENERATED)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def file(made):
    return made / "report/index.html"


@pytest.fixture(scope="module")
def numbers(made):
    return json.loads((made / "metrics.json").read_text())["demo"]


def layers(made, folder):
    return [json.loads((made / f"results/{folder}/layer_00{i}.json").read_text()) for i in range(synthetic.LAYERS)]


def drawn(page, plot):
    """Return the traces that a picture shows now."""
    return page.evaluate("id => document.getElementById(id).data", plot)


def choose(page, plot, option, which=0):
    page.locator(f'select[data-for~="{plot}"]').nth(which).select_option(option)


def column(page, table, number):
    return page.locator(f'table[aria-label="{table}"] tbody tr > :nth-child({number})').all_inner_texts()


def test_it_opens_without_a_word_and_asks_for_nothing_but_itself(browser, file):
    with opened(browser, file) as (page, said, asked):
        for select in page.locator("select").all():
            for option in select.locator("option").all_inner_texts():
                select.select_option(option)
        for details in page.locator("summary").all():
            details.click()
        assert page.locator(".plot:has(.main-svg)").count() == page.locator(".plot").count() == 9
        assert said == []
        assert asked == [file.as_uri()]


def test_every_picture_of_scores_shows_the_numbers_of_metrics_json(browser, file, numbers):
    keys = ["fidelity/kl", "fidelity/perplexity", "fidelity/top1", "blimp/acc"]
    with opened(browser, file) as (page, *_):
        for place, key in enumerate(keys, start=1):
            shown = {trace["name"]: trace for trace in drawn(page, f"quality-demo-{place}")}
            lowest = shown.pop("the lowest of its size", None)
            assert (lowest is not None) == (key in score_plots.LOGARITHMIC)
            full = shown.pop("full", None)
            assert (full and full["y"][0]) == numbers["full"].get(key)
            lines = page.evaluate("id => document.getElementById(id).layout.shapes || []", f"quality-demo-{place}")
            assert [line["y0"] for line in lines] == [numbers["full"][one] for one in (key,) if one in numbers["full"]]
            assert {name: trace["y"][0] for name, trace in shown.items()} == {
                name: run[key] for name, run in numbers["runs"].items()
            }
            for name, trace in shown.items():
                run = numbers["runs"][name]
                assert trace["x"][0] == run["cost/bytes"] / numbers["full"]["cost/bytes"]
                if f"{key}_stderr" in run:
                    assert trace["error_y"]["array"][0] == run[f"{key}_stderr"]


def test_a_head_sorts_its_column_up_and_down_and_what_is_missing_stays_last(browser, file, numbers):
    by_kl = sorted(numbers["runs"], key=lambda name: numbers["runs"][name]["fidelity/kl"])
    with opened(browser, file) as (page, *_):
        head = page.locator('table[aria-label="Scores"] thead button', has_text="KL")
        for direction, names in (("ascending", by_kl), ("descending", by_kl[::-1])):
            head.click()
            first = [re.sub(r"^\W|best|\s", "", name) for name in column(page, "Scores", 1)]
            assert first == [*names, "fullmodel"]
            assert page.locator("th[aria-sort]").get_attribute("aria-sort") == direction
        head = page.locator('table[aria-label="Scores"] thead button', has_text="run")
        head.focus()
        page.keyboard.press("Enter")
        assert column(page, "Scores", 1)[0].strip() == "full model"


def test_the_tables_show_the_numbers_of_metrics_json(browser, file, numbers):
    rows = [numbers["full"], *numbers["runs"].values()]
    shown = "cells => cells.map(cell => 'value' in cell.dataset ? Number(cell.dataset.value) : null)"
    with opened(browser, file) as (page, *_):

        def values(table, number):
            return page.locator(f'table[aria-label="{table}"] tbody td:nth-child({number})').evaluate_all(shown)

        for number, key in enumerate(("fidelity/kl", "fidelity/perplexity", "fidelity/top1", "blimp/acc"), start=4):
            assert values("Scores", number) == [row.get(key) for row in rows]
            texts = column(page, "Scores", number)
            assert texts == [shown_as(row.get(key), row.get(f"{key}_stderr")) for row in rows]
        for number, key in enumerate(("parameters", "bytes", "flops_per_token"), start=2):
            assert values("Cost", number) == [row[f"cost/{key}"] for row in rows]
        for number, key in enumerate(("loops", "distinct2", "length", "perplexity"), start=2):
            assert values("Generation", number) == [row[f"generation/{key}"] for row in rows]


def test_errors_switch_by_method_and_by_layer(browser, file, made):
    solved = {run.subject: layers(made, synthetic.layer_file(run, 0).rpartition("/")[0]) for run in synthetic.RUNS}
    with opened(browser, file) as (page, *_):
        assert [trace["name"] for trace in drawn(page, "errors-demo")] == list(solved)
        choose(page, "errors-demo", "average")
        heldout, fit = drawn(page, "errors-demo")
        errors = [layer["output_error"] for layer in solved["mixed/half/average"]]
        assert heldout["y"] == pytest.approx([error["heldout"] for error in errors], rel=1e-3)
        assert fit["y"] == pytest.approx([error["fit"] for error in errors], rel=1e-3)
        choose(page, "errors-demo", "mixed/quarter")
        assert {trace["legendgroup"] for trace in drawn(page, "errors-demo")} == {"mixed/quarter/mergemoe"}
        for number in range(synthetic.LAYERS):
            choose(page, "layer-demo", str(number))
            fit = drawn(page, "layer-demo")[1]
            shown = dict(zip(fit["text"], fit["x"], strict=True))
            assert shown == pytest.approx({n: at[number]["output_error"]["fit"] for n, at in solved.items()}, rel=1e-3)


def test_a_refined_run_shows_its_error_over_the_steps(browser, file):
    with opened(browser, file) as (page, *_):
        options = page.locator('select[data-for="refine-demo"] option').all_inner_texts()
        assert options == ["mixed/half/mergemoe+tuned"]
        lines = drawn(page, "refine-demo")
        assert [line["name"] for line in lines] == [f"layer {layer}" for layer in range(synthetic.LAYERS)]
        told = synthetic.refinement(0, 4, synthetic.KL["half/mergemoe+tuned"])["history"]
        assert lines[0]["y"] == pytest.approx([one["heldout"] for one in told], rel=1e-3)


def test_a_select_answers_to_the_keyboard(browser, file):
    with opened(browser, file) as (page, *_):
        before = drawn(page, "layer-demo")
        page.locator('select[data-for="layer-demo"]').focus()
        page.keyboard.press("ArrowDown")
        assert drawn(page, "layer-demo") != before


def test_the_group_map_switches_by_grouping_and_layer(browser, file, made):
    with opened(browser, file) as (page, *_):
        for cluster in synthetic.KEPT:
            for layer in layers(made, f"cluster/demo/mixed/{cluster}"):
                choose(page, "experts-demo", f"mixed/{cluster}")
                choose(page, "experts-demo", str(layer["layer"]), which=1)
                labels = page.locator("#experts-demo .ytick text").all_text_contents()
                numbers = [int(re.sub(r"\D", "", label)) for label in labels]
                colours = drawn(page, "experts-demo")[0]["marker"]["color"]
                places = {number: place for place, number in enumerate(numbers)}
                for group in layer["groups"]:
                    own = sorted(places[member] for member in group["members"])
                    assert own == list(range(own[0], own[0] + len(own)))
                    assert numbers[own[0]] == group["centre"]
                    assert len({colours[place] for place in own}) == 1
                pruned = len(layer["pruned"])
                assert numbers[len(numbers) - pruned :] == layer["pruned"]
        choose(page, "experts-demo", "mixed")
        assert page.locator("#experts-demo .ytick text").all_text_contents() == [
            str(e) for e in range(synthetic.EXPERTS)
        ]


def test_a_run_shows_its_own_fits(browser, file):
    with opened(browser, file) as (page, *_):
        for run in ("mixed/half/average", "mixed/half/mergemoe"):
            choose(page, "fits-demo", run)
            assert page.locator("#fits-demo table:visible").get_attribute("aria-label") == f"Fits of {run}"
        assert column(page, "Fits of mixed/half/average", 3) == ["–", "–"]
        assert column(page, "Fits of mixed/half/mergemoe", 3)[0].startswith("261")
        assert [trace["name"] for trace in drawn(page, "tokens-demo")[2:]] == [
            "all fitted tokens",
            "needed for all groups at once",
            "needed for one group",
        ]


def test_texts_stand_side_by_side_and_are_text(browser, file):
    with opened(browser, file) as (page, *_):
        for place, prompt in enumerate(synthetic.PROMPTS):
            choose(page, "texts-demo", str(place + 1))
            assert page.locator("blockquote:visible").inner_text() == prompt
            shown = page.locator("#texts-demo figure:visible p").all_inner_texts()
            assert shown == [f"{name} <b>of</b> {place}" for name in ("full", *synthetic.KL)]


@pytest.mark.parametrize("length", [0, 60])
def test_on_a_phone_nothing_but_a_table_scrolls_sideways(browser, file, tmp_path, length):
    long = tmp_path / "index.html"
    long.write_text(file.read_text().replace("quarter", "quarter" + "r" * length))
    with opened(browser, long, PHONE) as (page, *_):
        assert page.evaluate(SIDEWAYS) == 0
        for select in page.locator("select").all():
            select.select_option(index=select.locator("option").count() - 1)
        for details in page.locator("summary").all():
            details.click()
        assert page.evaluate(SIDEWAYS) == 0


def test_a_first_screen_has_pictures_and_the_head_of_the_table(browser, file):
    with opened(browser, file) as (page, *_):
        row = page.locator('table[aria-label="Scores"] tbody tr').first.bounding_box()
        assert row and row["y"] + row["height"] < DESKTOP[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser, file, scheme):
    with opened(browser, file, scheme=scheme) as (page, *_):
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light is (scheme == "light")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 200
        marks = re.compile(r"[●■◆▲▼★✚⬟⬢┐┤┘╍━┄○ ]+")  # no words: shapes in a method's colour
        faint = [one for one in found if one["contrast"] < (3 if marks.fullmatch(one["text"]) else 4.5)]
        assert faint == []
