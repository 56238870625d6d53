"""params.yaml: every mistake is named by its path before the first job."""

import copy
import re
from pathlib import Path

import pytest
from good_params import GOOD

from mergemoe.artifacts.paths import PATTERNS
from mergemoe.errors import UserError
from mergemoe.moe import layer_sizes
from mergemoe.workflow.config.params import read_params


def test_a_task_has_any_name_that_lm_eval_gives_one():
    for name in ("AraDiCE_computer-science_egy", "mmlu_pro.v2", "piqa"):
        assert re.fullmatch(PATTERNS["task"] + r"\.json", f"{name}.json")
        assert name in read_params(GOOD | {"evaluate": GOOD["evaluate"] | {"tasks": {name: {}}}}).evaluate.tasks
    for name in ("fidelity", "generation"):
        assert not re.fullmatch(PATTERNS["task"] + r"\.json", f"{name}.json")


def test_the_projects_own_file_names_some_of_all_runs_that_fit():
    everything = read_params({**GOOD, "runs": "all"})
    assert set(read_params(GOOD).all_runs()) < set(everything.all_runs())
    products = len(GOOD["model"]) * len(GOOD["calibrate"]) * len(GOOD["cluster"]) * len(GOOD["solve"])
    bare = [run for run in everything.all_runs() if run.refine is None]
    assert len(bare) + len(everything.left_out()) == products
    assert len(everything.all_runs()) == len(bare) * (1 + len(GOOD.get("refine", {})))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("solve.mergemoe.rigde", 1, "solve.mergemoe.rigde: unknown key"),
        ("model.demo.dequantize", "yes", "model.demo.dequantize: .* (got 'yes')"),
        ("solve.mergemoe.ridge", "1e-3", "YAML reads 1e-3 as text: write 1.0e-3"),
        ("solve.mergemoe.ridge", -1.0, "solve.mergemoe.ridge: .* (got -1.0)"),
        ("solve.mergemoe.method", "magic", "'average', 'msmoe'"),
        ("capture.threads", 0, "capture.threads"),
        ("cluster.half.experts", 1.5, "1.5 is a share above 1"),
        ("cluster.half.experts", "half", "cluster.half.experts: .* (got 'half')"),
        ("cluster.half.layers", "3-1", "empty range"),
        ("cluster.half.layers", "last", "neither `all` nor a range"),
        ("cluster.a b", {"by": "weights", "experts": 2}, "'a b' becomes a path"),
        ("calibrate.full", {"source": "x.txt", "samples": 1, "length": 9}, "`full` is reserved"),
        ("model.q", {"path": "-x"}, "model.q.path: the path '-x' would be read as an option. Write ./-x"),
        ("model.q", {"path": "a{b}"}, "model.q.path: the path 'a{b}' has braces"),
        ("model.q", {"path": "a\nb"}, "has braces or control characters"),
        ("model.q", {"path": "results"}, "the path 'results' is the workflow's own folder"),
        ("model.q", {"path": "./results/"}, "the path './results/' is the workflow's own folder"),
        ("calibrate.mixed.source", "-t.jsonl", "calibrate.mixed.source: the path '-t.jsonl' would be read as"),
        (
            "model.q",
            {"path": "d/" + "n" * 256},
            "the path d/nnnnnnnnnnnnnnnnnn... has 258 letters; a file system takes",
        ),
        ("calibrate.mixed.source", 600 * "d/", "the path d/d/d/d/d/d/d/d/d/d/... has 1200 letters"),
        (
            "calibrate.mixed.source",
            "results/report/x.txt",
            "calibrate.mixed.source: .* lies in the workflow's own folder results/",
        ),
        (
            "evaluate.heldout.source",
            "data/../scratch/x.txt",
            "evaluate.heldout.source: .* lies in the workflow's own folder scratch/",
        ),
        ("evaluate.tasks.piqa", {"include": "."}, "include: the path '.' holds the workflow's own folder results/"),
        ("evaluate.tasks.piqa", {"include": "results/a"}, "lies in the workflow's own folder results/"),
        ("evaluate.tasks.piqa", {"include": str(Path("results/a").absolute())}, "lies in the workflow's own folder"),
        ("evaluate.tasks.piqa", {"data_files": {"test": "logs/x"}}, "test: .* lies in the workflow's own folder logs/"),
        ("evaluate.tasks.piqa", {"include": "-tasks"}, "would be read as an option"),
        ("evaluate.tasks.piqa", {"data_files": {"test": "-f"}}, "would be read as an option"),
        ("model.provenance", {"path": "x"}, "model: the name `provenance` is reserved"),
        ("model.results", {"path": "x"}, "model: the name `results` is reserved"),
        ("model.layer_1", {"path": "x"}, "model: the name `layer_1` is reserved"),
        ("solve.run_" + 20 * "0", {"method": "average"}, "repeats itself at its end"),
        ("cluster." + 10 * "ab", {"by": "weights", "experts": 2}, "repeats itself at its end"),
        ("refine." + 101 * "xy", {"by": "layer"}, "... has 202 letters; a path takes 100"),
        ("evaluate.tasks." + 101 * "t", {}, "has 101 letters"),
        ("solve.mergemoe.ridge", float("inf"), "finite number (got inf)"),
        ("calibrate.mixed.holdout", float("nan"), "calibrate.mixed.holdout: Input should be a finite number"),
        ("capture.batch_tokens", 2**70, "capture.batch_tokens: .* less than or equal to 1073741824"),
        ("profile.threads", 10**9, "profile.threads: .* less than or equal to 1024"),
        ("calibrate.mixed.samples", 10**9, "calibrate.mixed.samples: .* less than or equal to 10000000"),
        ("calibrate.mixed.seed", 2**70, "calibrate.mixed.seed"),
        ("refine.tuned.steps", 2**40, "refine.tuned.steps"),
        ("calibrate.mixed.dataset", "allenai/c4", "give either `source`"),
        ("calibrate.c4", {"dataset": "allenai/c4", "samples": 1, "length": 9}, "needs `revision`"),
        (
            "model.q",
            {"path": "Qwen/Q3", "revision": "main"},
            "`mergemoe fetch Qwen/Q3 --revision main` prints the current one",
        ),
        ("model.q", {"path": "Qwen/Q3", "revision": "0123abc"}, "'0123abc' is not a full commit hash"),
        (
            "model.q",
            {"path": "/models/q3", "revision": "0" * 40},
            "'/models/q3' is not an id such as Qwen/Qwen3-30B-A3B",
        ),
        ("evaluate.tasks.fidelity", {}, "always measured"),
        ("evaluate.tasks.generation", {}, "`generation` is not a task of lm-eval"),
        ("evaluate.generation", {}, "80 prompts of 32 tokens from `heldout`, which has 64 sequences of 256"),
        ("evaluate.generation", {"prompts": 4, "prompt_tokens": 257}, "4 prompts of 257 tokens from `heldout`"),
        ("evaluate.generation", {"prompts": 4, "new_tokens": 23}, "evaluate.generation.new_tokens"),
        ("evaluate.generation", {"prompt": 4}, "evaluate.generation.prompt: unknown key"),
        ("runs", [["demo", "mixed", "half", "magic"]], "solve 'magic'; there are: average, mergemoe, reap, select"),
        ("runs", [["demo", "mixed", "half"]], "runs.0.solve: Field required"),
        ("runs", [], "empty"),
        ("runs", [["demo"] * 7], "runs.0: a run is a list, or a mapping, of at most 6 names: model, calibrate"),
        ("runs", ["demo"], "runs.0: a run is a list, or a mapping, of at most 6 names"),
        ("runs", [{"model": "demo", "calibrate": "mixed", "solve": "average"}], "runs.0.cluster: Field required"),
        ("runs", [{"model": "demo", "refined": "tuned"}], "runs.0.refined: unknown key"),
        ("runs", [["demo", "mixed", "half", "average"], ["demo", "mixed", "half", "average", None]], "has a run twice"),
        ("cluster.pairs", {"by": "selection", "experts": 0.5, "width": 0.0}, "cluster.pairs.width"),
        (
            "cluster.half",
            {"by": "weights", "experts": 0.5, "width": 0.5},
            "`width` of a grouping needs `by: selection`",
        ),
        (
            "cluster.half",
            {"by": "weights", "experts": 0.5, "width_multiple": 128},
            "`width_multiple` of a grouping needs `by: selection`",
        ),
        ("solve.slim", {"method": "slim", "width": 0.5, "width_multiple": 0}, "solve.slim.width_multiple"),
        ("solve.slim", {"method": "slim", "width": 0.5, "width_multiple": 0.5}, "solve.slim.width_multiple"),
        ("cluster.half", {"by": "weights"}, "`experts` is the number or share of experts kept"),
        ("cluster.whole", {"by": "none", "experts": 4}, "`by: none` keeps all: leave it out there only"),
        ("solve.slim", {"method": "slim"}, "solve.slim.width: Field required"),
        ("solve.joint", {"method": "joint", "ridge": -1.0}, "solve.joint.ridge"),
        ("solve.joint", {"method": "joint", "ridge": "best"}, "solve.joint.ridge"),
        ("solve.joint", {"method": "joint", "memory": 0.0}, "solve.joint.memory"),
        ("solve.routed", {"method": "routed", "memory": 8.0}, "solve.routed.memory: unknown key"),
        ("cluster.half", {"by": "weights", "experts": 0.5, "share": 0.5}, "and needs `by: selection`"),
        ("cluster.half", {"by": "selection", "experts": 0.5, "share": 0.5}, "and needs `by: selection`"),
        ("cluster.half", {"by": "selection", "experts": 0.5, "per": "layer"}, "`per` needs `share`"),
        (
            "cluster.half",
            {"by": "saliency", "experts": 4, "budget": "error"},
            "`budget: error` needs groups that are merged",
        ),
        (
            "cluster.half",
            {"by": "outputs", "experts": 4, "max_size": 2},
            "applies to `by: weights, router, selection`; this grouping is `by: outputs`",
        ),
        ("cluster.half", {"by": "weights", "experts": 4, "max_size": 1}, "cluster.half.max_size"),
        ("cluster.half", {"by": "weights", "experts": 4, "search": "quick"}, "`search: quick` needs `by: selection`"),
        ("solve.joint", {"method": "joint", "width": 0.5}, "`width` below 1 needs `features: selected`: usage are"),
        ("solve.joint", {"method": "joint", "routing": "gone"}, "solve.joint.routing"),
        ("model", {}, "model: it is empty. Give at least one choice"),
    ],
)
def test_a_mistake_is_named(path, value, message):
    config = copy.deepcopy(GOOD)
    target, (*parents, last) = config, path.split(".")
    for parent in parents:
        target = target[parent]
    target[last] = value
    with pytest.raises(UserError) as error:
        read_params(config)
    head, _, tail = message.partition(" .* ")
    assert head in str(error.value) and tail in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("threads", "n" * 10**6, r"  capture.threads: .*nn\.\.\.nn"),
        ("n" * 10**6, 1, r"  capture.n*\.\.\.n*: unknown key"),
        ("a\n\x1b[2J", 1, r"  capture.a\\n\\x1b\[2J: unknown key"),
        ("threads", 10**9999, "  capture.threads: .* less than or equal to 1024"),
    ],
    ids=["a long text", "a long key", "a key that moves the cursor", "a number that Python does not print"],
)
def test_a_mistake_is_one_line_that_a_terminal_shows(key, value, words):
    with pytest.raises(UserError) as error:
        read_params({**GOOD, "capture": {key: value}})
    _, line = str(error.value).split("\n")
    assert re.match(words, line) and line.isprintable() and len(line) < 1200


SELECT = ["demo", "mixed", "pairs", "select"]
REAP = ["demo", "mixed", "salient", "reap"]


def refined(choice, runs):
    """The project's file with one choice of refine, `tuned`."""
    return read_params({**GOOD, "refine": {"tuned": {"by": "layer", **choice}}, "runs": runs})


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"by": "model"}, "refine.tuned.by: Input should be 'layer'"),
        ({"step": 400}, "refine.tuned.step: unknown key"),
        ({"steps": 2.5}, "refine.tuned.steps: .* (got 2.5)"),
        ({"batch": 0}, "refine.tuned.batch: .* (got 0)"),
        ({"rate": "1e-3"}, "YAML reads 1e-3 as text: write 1.0e-3"),
        ({"parts": []}, "refine.tuned.parts: "),
        ({"parts": ["up", "up"]}, "refine.tuned.parts: ['up', 'up'] names one of them twice"),
        ({"parts": ["left"]}, "refine.tuned.parts.0: .* (got 'left')"),
        ({"parts": ["up", "router"]}, "refine.tuned: `parts` names the router, but the routing is preserved"),
        ({"threads": 0}, "refine.tuned.threads: .* (got 0)"),
    ],
)
def test_a_mistake_of_a_refine_is_named(choice, message):
    with pytest.raises(UserError) as error:
        refined(choice, [[*SELECT, "tuned"]])
    head, _, tail = message.partition(" .* ")
    assert head in str(error.value) and tail in str(error.value)


def test_a_refine_that_is_not_there_is_named():
    with pytest.raises(UserError, match="asks for refine 'other'; there are: tuned"):
        refined({}, [[*SELECT, "other"]])
    with pytest.raises(UserError, match="asks for refine 'tuned'; there are: none"):
        read_params({**GOOD, "refine": {}, "runs": [[*SELECT, "tuned"]]})
    with pytest.raises(UserError, match="refine: the name 'a-b' becomes a path"):
        read_params({**GOOD, "refine": {"a-b": {"by": "layer"}}})


def test_a_router_can_be_fitted_where_the_solve_changes_it():
    assert refined({"parts": ["router"]}, [[*REAP, "tuned"]]).all_runs()[0].name == "demo/mixed/salient/reap+tuned"


def test_a_run_is_a_list_or_a_mapping():
    mapping = dict(zip(("model", "calibrate", "cluster", "solve"), SELECT, strict=True))
    runs = [SELECT, [*SELECT, None], mapping, mapping | {"refine": None}]
    assert {refined({}, [run]).all_runs()[0] for run in runs} == {(*SELECT, None, None)}
    assert {refined({}, [run]).all_runs()[0] for run in ([*SELECT, "tuned"], mapping | {"refine": "tuned"})} == {
        (*SELECT, "tuned", None)
    }
    named = refined({}, [SELECT, [*SELECT, "tuned"]])
    assert named.run_named("demo", "mixed/pairs/select+tuned") == named.all_runs()[1]
    with pytest.raises(UserError, match="demo/mixed/pairs/average is not a run"):
        named.run_named("demo", "mixed/pairs/average")


def test_all_takes_every_run_without_a_refine_and_with_each_that_fits():
    bare = [run.subject for run in read_params({**GOOD, "refine": {}, "runs": "all"}).all_runs()]
    both = [run.subject for run in refined({}, "all").all_runs()]
    assert both == [f"{run}{end}" for run in bare for end in ("", "+tuned")]
    params = refined({"parts": ["router"]}, "all")
    assert [run.subject for run in params.all_runs() if run.refine] == ["mixed/salient/reap+tuned"]
    assert "half/average+tuned is left out: refine.tuned: `parts` names the router" in "\n".join(params.left_out())
    assert not any(line.startswith("half/reap+tuned") for line in params.left_out())  # half/reap is


BENCH = {
    "cluster": {
        "half": {"by": "weights", "experts": 0.5},
        "pairs": {"by": "selection", "experts": 0.5},
        "thin": {"by": "selection", "experts": 0.5, "width": 0.5},
        "whole": {"by": "none"},
    },
    "solve": {
        "average": {"method": "average"},
        "mergemoe": {"method": "mergemoe"},
        "select": {"method": "select"},
        "thin": {"method": "select", "width": 0.5},
        "slim": {"method": "slim", "width": 0.5},
    },
}


def test_all_takes_every_product_whose_grouping_fits_and_says_what_it_leaves_out():
    params = read_params({**GOOD, **BENCH, "refine": {}, "runs": "all"})
    assert [run[2:4] for run in params.all_runs()] == [
        ("half", "average"),
        ("half", "mergemoe"),
        ("pairs", "average"),
        ("pairs", "select"),
        ("thin", "thin"),
        ("whole", "slim"),
    ]
    left_out = params.left_out()
    assert len(left_out) == 4 * 5 - 6
    assert "pairs/mergemoe is left out: method mergemoe needs groups by weights, not by selection" in left_out
    assert "pairs/thin is left out: the groups are made for width 1.0, but the method keeps 0.5" in left_out


def test_groups_and_method_must_round_a_width_alike():
    thin = {"by": "selection", "experts": 0.5, "width": 0.5, "width_multiple": 8}
    solve = {"method": "select", "width": 0.5}
    given = {**GOOD, "cluster": {"thin": thin}, "solve": {"thin": solve}, "refine": {}, "runs": "all"}
    with pytest.raises(UserError, match="made for multiples of 8 neurons, the method keeps 32"):
        read_params(given)
    params = read_params({**given, "solve": {"thin": {**solve, "width_multiple": 8}}})
    assert params.kept_width("thin", "thin", 40) == params.kept_width("thin", None, 40) == 24
    params = read_params({**given, "solve": {"thin": {"method": "select", "width": "auto"}}})
    assert params.kept_width("thin", "thin", 40) == 24


def test_a_run_that_is_named_must_fit():
    with pytest.raises(UserError, match="mergemoe needs groups by weights, not by selection"):
        read_params({**GOOD, **BENCH, "runs": [["demo", "mixed", "pairs", "mergemoe"]]})


def test_a_missing_section_is_named():
    with pytest.raises(UserError, match="evaluate: Field required"):
        read_params({key: value for key, value in GOOD.items() if key != "evaluate"})


@pytest.mark.parametrize(
    ("experts", "total", "kept"),
    [
        (0.5, 16, 8),
        (0.5, 15, 8),
        (0.1, 10, 1),
        (0.7, 10, 7),
        (1.0, 6, 6),
        (3, 6, 3),
        (None, 6, 6),
        (1e-12, 8, 1),
        (5e-324, 8, 1),
    ],
)
def test_a_share_is_rounded_up_and_a_number_is_itself(experts, total, kept):
    assert layer_sizes.kept_experts(experts, total) == kept


@pytest.mark.parametrize(
    ("share", "width", "multiple", "kept"),
    [
        (0.5, 128, 32, 64),
        (0.35, 128, 8, 48),
        (0.35, 128, 32, 64),
        (0.01, 128, 8, 8),
        (0.5, 768, 256, 512),  # Qwen3-30B-A3B: 384 has no K-quant
        (0.5, 768, 32, 384),
        (0.5, 24, 32, 16),  # 8 divides both
        (1.0, 24, 32, 24),
        (0.5, 1408, 256, 768),  # 11 times 128
        (0.6, 5, 32, 3),
        (0.5, 12, 8, 8),
        (0.5, 12, 1, 6),
        (1e-12, 24, 8, 8),
        (1e-12, 5, 8, 1),
    ],
)
def test_a_kept_width_is_a_multiple_as_far_as_the_original_is(share, width, multiple, kept):
    assert layer_sizes.kept_width(share, width, multiple) == kept
