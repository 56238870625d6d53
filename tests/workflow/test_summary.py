"""A summary tells decisions exactly, and the size of a difference of numbers to about a quarter."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergemoe.artifacts import paths, store
from mergemoe.calibration.activation_file import Writer
from mergemoe.workflow.comparison import array_parts, summary
from mergemoe.workflow.comparison.array_parts import part_of, summarize_arrays
from mergemoe.workflow.comparison.summary import Apart, compare_summaries, summarize
from mergemoe.workflow.ledger import compare

MADE = {"stage": "x", "inputs": {}, "code": "1"}
WHOLE = {
    "groups": [{"members": [0, 3], "share": 0.25}, {"members": [1], "share": 0.5}],
    "by": "weights",
    "n": 2,
    "e": [],
}
DECISIONS = {
    "a member that moves": (
        lambda w: w.update(groups=[{"members": [0], "share": 0.25}, {"members": [3, 1], "share": 0.5}])
    ),
    "two members swapped": (lambda w: w["groups"][0].update(members=[3, 0])),
    "the same keys, nested otherwise": (lambda w: w.update(a={"b": 1}) or w.update({"a.b": w.pop("a")["b"]})),
    "another word": (lambda w: w.update(by="outputs")),
    "another count": (lambda w: w.update(n=3)),
    "a whole number for a number": (lambda w: w["groups"][0].update(share=1)),
    "null for a number": (lambda w: w["groups"][0].update(share=None)),
    "true for 1": (lambda w: w.update(n=True)),
    "a key less": (lambda w: w.pop("by")),
    "a key more": (lambda w: w.update(more=1)),
    "an entry in an empty list": (lambda w: w.update(e=[0])),
    "a group more": (lambda w: w["groups"].append({"members": [], "share": 0.0})),
}


def of_json(folder, whole, name="a"):
    path = folder / f"results/{name}.json"
    store.write_json(path, whole, MADE)
    return summarize(path)


def of_array(array):
    return summarize_arrays([("a", array)])


@pytest.mark.parametrize("change", DECISIONS.values(), ids=DECISIONS)
def test_whatever_is_no_number_is_a_decision(change, tmp_path):
    other = copy.deepcopy(WHOLE)
    change(other)
    found = compare_summaries(of_json(tmp_path, WHOLE), of_json(tmp_path, other))
    assert found.decisions


def test_the_same_values_of_other_provenance_are_not_apart(tmp_path):
    one = of_json(tmp_path, WHOLE)
    store.write_json(tmp_path / "results/a.json", WHOLE, {**MADE, "code": "2"})
    assert compare_summaries(one, summarize(tmp_path / "results/a.json")) == Apart([], {})


def test_numbers_of_json_are_apart_by_their_norm(tmp_path):
    other = copy.deepcopy(WHOLE)
    other["groups"][1]["share"] = 0.5 + 1e-6
    found = compare_summaries(of_json(tmp_path, WHOLE), of_json(tmp_path, other))
    assert found.decisions == [] and found.numbers == {"groups.share": pytest.approx(1e-6 / 0.3125**0.5, rel=1e-4)}


def test_numbers_under_keys_with_digits_are_compared(tmp_path):
    one, other = ({"by_ridge": {"0.01": size, "1": 2.0}} for size in (0.5, 0.6))
    found = compare_summaries(of_json(tmp_path, one), of_json(tmp_path, other))
    assert found == Apart([], {"by_ridge.0.01": pytest.approx(0.2)})


def test_a_map_of_experts_says_which_experts_are_in_another_group(tmp_path):
    one, other, less = ({"expert_map": groups} for groups in ([0, 1, 1, 2], [0, 2, 1, 1], [0, 1, 2]))
    before = of_json(tmp_path, one)
    assert compare_summaries(before, of_json(tmp_path, other)) == Apart(["expert_map of 1, 3"], {})
    assert compare_summaries(before, of_json(tmp_path, less)) == Apart(["expert_map"], {})


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 5, 4093, 4094, 20_000]), log=st.floats(-8, 0))
def test_the_size_of_a_difference_is_right_to_a_factor(seed, size, log):
    draw = np.random.default_rng(seed)
    one, noise = draw.standard_normal(size), draw.standard_normal(size)
    other = one + 10**log * noise
    found = compare_summaries(of_array(one), of_array(other)).numbers["a"]
    true = np.linalg.norm(other - one) / np.linalg.norm(one)
    assert 0.15 < found / true < 2.5


@given(seed=st.integers(0, 10**6), place=st.integers(0, 9999))
def test_one_number_among_many_is_seen_as_it_is(seed, place):
    one = np.random.default_rng(seed).standard_normal(10_000)
    other = one.copy()
    other[place] += 1e-3
    found = compare_summaries(of_array(one), of_array(other)).numbers["a"]
    assert found == pytest.approx(1e-3 / np.linalg.norm(one), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_and_captures_are_summarized_in_every_type(dtype, tmp_path):
    tensors = {"down": torch.arange(6.0).reshape(2, 3).to(dtype), "expert_map": torch.tensor([0, 1])}
    paths = [tmp_path / f"results/{name}" for name in ("a.safetensors", "a.h5")]
    paths[0].parent.mkdir()

    def write(scale, expert, held):
        store.write_tensors(paths[0], {"down": tensors["down"] * scale, "expert_map": torch.tensor([0, expert])}, MADE)
        writer = Writer(paths[1], torch.tensor([held, False]))
        writer.append(
            hidden=tensors["down"] * scale,
            expert_index=torch.tensor([[0], [expert]], dtype=torch.int16),
            sequence=torch.tensor([0, 1], dtype=torch.int32),
        )
        writer.close({**MADE, "layer": 0})
        return [summarize(path) for path in paths]

    before, larger, other = write(1.0, 1, True), write(1.5, 1, True), write(1.0, 2, False)
    parts, decisions = ("down", "hidden.N"), (["expert_map"], ["expert_index.N", "heldout"])
    for i in range(2):
        assert compare_summaries(before[i], larger[i]) == Apart([], {parts[i]: pytest.approx(0.5, rel=0.6)})
        assert compare_summaries(before[i], other[i]) == Apart(decisions[i], {})
        assert json.loads(json.dumps(before[i])) == before[i]


@given(seed=st.integers(0, 10**6), moved=st.integers(0, 300))
def test_a_capture_tells_how_many_choices_of_experts_moved(seed, moved, tmp_path_factory):
    draw, path = np.random.default_rng(seed), tmp_path_factory.mktemp("capture") / "results/a.h5"
    path.parent.mkdir()
    index = np.stack([draw.permutation(8)[:3] for _ in range(400)])
    found = []
    for flips in (0, moved):
        for token in range(flips):
            index[token, 2] = next(expert for expert in range(8) if expert not in index[token])
        writer = Writer(path, torch.tensor([False]))
        writer.append(
            hidden=torch.ones(400, 2),
            expert_index=torch.from_numpy(index).to(torch.int16),
            router_logits=torch.ones(400, 8),
            sequence=torch.zeros(400, dtype=torch.int32),
        )
        writer.close({**MADE, "layer": 0})
        found.append(summarize(path))
    share = compare_summaries(*found).numbers.get("chosen.N", 0.0) ** 2 / 2
    assert 0.05 * moved / 1200 <= share <= 4 * moved / 1200


def test_a_token_without_an_expert_counts_as_one_that_chose_no_expert():
    found = array_parts._chosen(np.array([[0, 2], [1, -1]], np.int16), experts=3)
    np.testing.assert_array_equal(found, [[1, 0, 1, 0], [0, 1, 0, 1]])


def test_another_shape_is_a_decision():
    one, other = (of_array(np.ones(shape)) for shape in ((2, 3), (3, 2)))
    assert compare_summaries(one, other) == Apart(["a"], {})


def test_a_number_beside_zero_is_infinitely_far():
    one, other = (of_array(np.array([number])) for number in (0.0, 1e-9))
    assert compare_summaries(one, other) == Apart([], {"a": float("inf")})


def test_every_result_has_a_summary_but_what_the_report_writes():
    for path in (paths.PAGE, paths.METRICS, paths.QUALITY, paths.ERRORS, paths.REPORTED, "results/cards/m/a/b/c.md"):
        assert not summary.has_summary(path)
    for path in ("models/m/README.md", "models/m/modeling_mergemoe.py", "models/m/provenance.json", "scores/m/x.json"):
        assert summary.has_summary(f"results/{path}")


def test_a_text_is_one_decision_and_another_input_is_told(tmp_path):
    (tmp_path / "results").mkdir()
    text = tmp_path / "results/modeling_mergemoe.py"
    found = [(text.write_text(words), summarize(text))[1] for words in ("a = 1\n", "a = 2\n")]
    assert compare_summaries(*found) == compare.WHOLE
    for name in ("a.json", "provenance.json", "a.safetensors"):
        found = []
        for inputs in ({"results/b": "1"}, {"results/b": "2"}, {}):
            path = tmp_path / "results" / name
            if name.endswith(".json"):
                store.write_json(path, {"files": {"x": "1"}}, {**MADE, "inputs": inputs})
            else:
                store.write_tensors(path, {"x": torch.ones(1)}, {**MADE, "inputs": inputs})
            found.append(summarize(path))
        assert found[0] == found[1]  # the digests of inputs are checked against the inputs
        assert compare_summaries(found[0], found[2]) == Apart(["made from"], {})


SCORED = {
    "scores": {"acc": 0.5, "acc_stderr": 0.05},
    "parts": {name: {"acc": value, "acc_stderr": 0.1, "samples": 10} for name, value in (("a", 0.3), ("b", 0.4))},
    "continuations": [{"prompt": "x", "text": text} for text in ("one", "two", "three")],
}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda w: w["scores"].update(acc=0.6, acc_stderr=0.06), Apart([], {})),  # metrics.json has these
        (lambda w: w["parts"]["b"].update(acc=0.5), Apart([], {"parts.*.acc": pytest.approx(0.2)})),
        (lambda w: w["parts"]["b"].update(acc_stderr=0.2), Apart([], {"parts.*.acc_stderr": pytest.approx(0.5**0.5)})),
        (lambda w: w["parts"]["b"].update(samples=11), Apart(["parts.b.samples"], {})),
        (lambda w: w["scores"].update(acc=1), Apart(["scores.acc"], {})),
        (lambda w: w["continuations"][1].update(text="2"), Apart(["continuations.text of 1"], {})),
        (lambda w: w["continuations"][1].update(prompt="y"), Apart(["continuations.prompt"], {})),
        (lambda w: w["continuations"].pop(), Apart(["continuations.prompt", "continuations.text"], {})),
    ],
)
def test_a_score_file_tells_its_decisions_and_the_scores_of_parts(change, found, tmp_path):
    def of_score(whole):
        store.write_json(tmp_path / "results/a.json", whole, {**MADE, "stage": "evaluate"})
        return summarize(tmp_path / "results/a.json")

    (tmp_path / "results").mkdir()
    before, other = of_score(SCORED), copy.deepcopy(SCORED)
    change(other)
    assert compare_summaries(before, of_score(other)) == found


def test_numbers_in_names_are_one_part_but_those_of_layers():
    assert part_of("model.layers.12.mlp.experts.3.up_proj.weight") == "model.layers.12.mlp.experts.N.up_proj.weight"
    assert part_of("down.17") == "down.N" and part_of("hidden.65536") == "hidden.N"


def test_results_are_compared_by_bytes_payload_and_summary(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for root in (one, other):
        of_json(root, {"x": [2.0]})
        (root / "results/cards").mkdir()
        (root / "results/cards/page.md").write_text("a")
    assert compare.compare_results(one, other) == (2, [])
    store.write_json(other / "results/a.json", {"x": [2.0]}, {**MADE, "code": "2"})
    assert compare.compare_results(one, other)[1] == [
        compare.Difference("results/a.json", Apart([], {}), payload=False)
    ]
    of_json(other, {"x": [2.5]})
    (other / "results/cards/page.md").write_text("b")
    assert compare.compare_results(one, other)[1] == [
        compare.Difference("results/a.json", Apart([], {"x": pytest.approx(0.25)}), payload=True),
        compare.Difference("results/cards/page.md", Apart([], {}), payload=True),
    ]
    (other / "results/cards/page.md").unlink()
    assert compare.compare_results(one, other, known={"results/a.json"}) == (
        1,
        [compare.Difference("results/cards/page.md", compare.WHOLE, payload=True)],
    )


def test_results_are_compared_with_recorded_summaries(tmp_path):
    recorded = {f"results/{name}.json": of_json(tmp_path, {"x": [2.0]}, name) for name in "abc"}
    of_json(tmp_path, {"x": [2.5]}, "b")
    (tmp_path / "results/c.json").unlink()
    of_json(tmp_path, {"x": [1.0]}, "d")
    found = compare.compare_recorded(tmp_path, recorded, ["results"])
    assert {one.path: one.apart for one in found} == {
        "results/b.json": Apart([], {"x": pytest.approx(0.25)}),
        "results/c.json": compare.WHOLE,
        "results/d.json": compare.WHOLE,
    }
    assert compare.compare_recorded(tmp_path, recorded, ["results/a.json"]) == []


@given(seed=st.integers(0, 10**6), which=st.integers(0, 4))
def test_tensors_whose_names_differ_in_numbers_are_one_part(seed, which):
    draw = np.random.default_rng(seed)
    arrays = {f"down.{i}": draw.standard_normal((3, 50)) for i in range(5)}
    before = summarize_arrays(arrays.items())
    changed = {**arrays, f"down.{which}": arrays[f"down.{which}"] + 0.1}
    after = summarize_arrays(changed.items())
    norm = np.linalg.norm(list(arrays.values()))
    assert list(before) == ["down.N"] and before["down.N"]["norm"] == pytest.approx(norm)
    found = compare_summaries(before, after)
    assert not found.decisions and 0.15 < found.numbers["down.N"] / (0.1 * 150**0.5 / norm) < 2.5
    names = list(arrays)
    swapped = {**arrays, names[0]: arrays[names[1]], names[1]: arrays[names[0]]}
    assert compare_summaries(before, summarize_arrays(swapped.items())).numbers["down.N"] > 0.1
    renamed = {key.replace("4", "5"): array for key, array in arrays.items()}
    assert compare_summaries(before, summarize_arrays(renamed.items())).decisions == ["down.N"]


@pytest.mark.parametrize("other", [{"temperature": 0.25}, {"temperature": 0.5, "n": 1}, [], None])
def test_json_that_is_no_artifact_is_one_decision(other, tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.5}))
    before = summarize(path)
    path.write_text(json.dumps(other))
    assert compare_summaries(before, summarize(path)) == compare.WHOLE


def test_captures_and_experts_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(array_parts, "ROWS", 4)
    (tmp_path / "results").mkdir()
    pieces = []

    def seen(arrays):
        return summarize_arrays(pieces.append(array.shape) or (name, array) for name, array in arrays)

    monkeypatch.setattr(summary, "summarize_arrays", seen)
    writer = Writer(tmp_path / "results/a.h5", torch.tensor([False]))
    writer.append(
        hidden=torch.arange(20.0).reshape(10, 2), expert_index=torch.zeros(10, 1), sequence=torch.zeros(10).int()
    )
    writer.close({**MADE, "layer": 0})
    found = summarize(tmp_path / "results/a.h5")
    assert max(shape[0] for shape in pieces) == 4
    assert found["hidden.N"]["norm"] == pytest.approx(float(torch.arange(20.0).norm()))
    store.write_tensors(tmp_path / "results/a.safetensors", {"down": torch.ones(3, 2, 2)}, MADE)
    pieces.clear()
    found = summarize(tmp_path / "results/a.safetensors")
    assert pieces == [(2, 2)] * 3 and found["down.N"]["norm"] == pytest.approx(12**0.5)
