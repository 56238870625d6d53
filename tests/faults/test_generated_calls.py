"""Generated calls of compress, save and load: each is refused and changes nothing, or does what its arguments say."""

import copy
import math
import shutil
from collections import Counter

import chance
import numpy as np
import pytest
import torch
from by_stages import drawn
from hypothesis import strategies as st
from tiny_project import make_tiny

import mergemoe
from mergemoe.methods.catalogue import METHODS
from mergemoe.reconstruction.options import LAYER

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0), pytest.mark.usefixtures("own_module_cache")]

N, LAYERS = 8, (1, 2)  # experts, and the layers that have them
WORDS = [
    *METHODS,
    "recommended",
    "auto",
    "all",
    "1",
    "1-2",
    "2-1",
    "-1",
    "",
    "é",
    "\0",
    "1" * 5000,
    "bfloat16",
    "cuda:99",
]
reals = st.one_of(
    st.integers(-2, 12),
    st.floats(0, 1),
    st.floats(),
    st.integers(10, 400).map(lambda digits: 10**digits),
    st.sampled_from([np.int64(4), np.float32(0.5), np.float64("nan"), np.bool_(True), 1 + 2j]),
)
tensors = st.sampled_from([torch.tensor(4), torch.tensor([0.5]), torch.zeros(0), np.array([1, 2]), torch.eye(2).bool()])
scalars = st.one_of(st.none(), st.booleans(), reals, st.sampled_from(WORDS), tensors)
anything = st.one_of(
    scalars, st.lists(scalars, max_size=3), st.dictionaries(st.sampled_from(WORDS), scalars, max_size=2), st.just({1}),
    st.just(b"all"), st.just(range(1, 3)), st.just(object()), st.just(lambda: 1),
)  # fmt: skip
DTYPES = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.complex64]
ids = st.builds(
    lambda shape, low, high, dtype: torch.linspace(low, high, math.prod(shape)).reshape(shape).to(dtype),
    st.lists(st.integers(0, 5), min_size=0, max_size=3),
    st.sampled_from([0, 3, -100, -1]),
    st.sampled_from([4, 90, 250, 4095, 4096, 2**40]),
    st.sampled_from(DTYPES),
)
tokens = st.one_of(
    st.just(drawn()), ids, anything,
    st.builds(lambda ids, mask: {"input_ids": ids, "attention_mask": mask}, ids, ids | anything),
    st.builds(lambda mask: {**drawn(), "attention_mask": mask}, ids | anything),
    st.builds(lambda share: {**drawn(), "attention_mask": (torch.rand(8, 24) < share).int()}, st.floats(0, 1)),
    st.builds(lambda other: {**drawn(), "pixel_values": other}, anything),
)  # fmt: skip
KEYS = sorted({name for method in METHODS.values() for name in method.options} | {"rigde", ""})
values = st.one_of(anything, st.sampled_from(["plain", "usage", "selected", "preserved", "pruned", "folded", 0.5, 0.1]))
mapped = st.dictionaries(st.sampled_from([*LAYER, "step"]), values, max_size=3)
short = st.builds(lambda mapping, steps: {"batch": 32, "steps": steps, **mapping}, mapped, st.integers(0, 4))
ARGUMENTS = {
    "tokens": tokens,
    "experts": values,
    "method": st.sampled_from(WORDS) | values,
    "layers": values,
    "seed": values,
    "holdout": values,
    "batch_tokens": values,
    "refine": st.one_of(values, mapped, short),
}
calls = st.dictionaries(st.sampled_from([*ARGUMENTS, *KEYS]), st.none(), min_size=1, max_size=3).flatmap(
    lambda keys: st.fixed_dictionaries({key: ARGUMENTS.get(key, values) for key in keys})
)


def numbers_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before, kind):
    now = model.state_dict()
    same = now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)
    return same and type(model) is kind and not hasattr(model.config, "mergemoe")


def promised(call):
    """The numbers of experts that the arguments state, if they do so plainly."""
    experts, layers, slim = call.get("experts"), call.get("layers", "all"), call.get("method") == "slim"
    experts = experts if experts is not None else 1.0 if slim else 0.5
    kept = int(experts) if isinstance(experts, int | np.integer) else max(1, math.ceil(experts * N - 1e-9))
    listed = {"all": LAYERS, "1-2": LAYERS, "1": (1,)}.get(layers, layers) if isinstance(layers, str) else layers
    return {layer: kept if layer in listed else N for layer in LAYERS}


def held(model):
    """The numbers of distinct experts that the layers have."""
    found = {}
    for layer in LAYERS:
        experts = model.model.layers[layer].mlp.experts
        found[layer] = len(experts.gate_up_proj)
    return found


def is_right(model, call):
    with torch.no_grad():
        finite = model(input_ids=drawn()["input_ids"][:2]).logits.isfinite().all()
    return bool(finite) and held(model) == promised(call)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("called") / "tiny")


def test_compress_refuses_or_does_what_its_arguments_say(folder, capsys):
    counts, wrong = Counter(), []
    whole = mergemoe.load(folder, "cpu", torch.float32)
    before, kind = numbers_of(whole), type(whole)

    def check(call):
        model = copy.deepcopy(whole)
        given = {"tokens": drawn(), **call}
        seen, found = chance.outcome(lambda: mergemoe.compress(model, **given), seconds=20, megabytes=1000)
        if seen == "read":
            seen = "right" if is_right(found, call) else "wrong"
        elif not unchanged(model, before, kind):
            seen += ", and the model is another"
        elif chance.unclear(str(found)):
            seen = "unclear"
        counts[seen] += 1
        if seen not in {"right", "refused"}:
            wrong.append((seen, call, chance.traced(found)))

    chance.examples("generated calls of compress", calls, check)
    chance.tell("generated calls of compress", counts)
    assert not wrong, "\n".join(map(str, wrong[:20]))


def test_save_and_load_refuse_or_do_what_their_arguments_say(folder, tmp_path):
    counts, wrong = Counter(), []
    whole = mergemoe.load(folder, "cpu", torch.float32)
    merged = mergemoe.compress(copy.deepcopy(whole), drawn(), method="average")
    (tmp_path / "file").write_text("x")
    places = st.sampled_from(["new", "a/b/new", "file", "file/below", "", ".", "n" * 300, "a\0b", "é"])
    sources = st.one_of(anything, st.just(folder), st.just(str(folder)), places.map(lambda name: tmp_path / name))
    given = st.tuples(sources, st.sampled_from(["cpu", "auto"]) | anything, st.just("auto") | anything)

    def check_load(arguments):
        seen, found = chance.outcome(lambda: mergemoe.load(*arguments), seconds=20, megabytes=1000)
        if seen == "read":
            right = found.device.type in {"cpu", "cuda"} and found.config.num_experts == N
            seen = "right" if right else "wrong"
        counts[f"load: {seen}"] += 1
        if seen not in {"right", "refused"}:
            wrong.append((seen, arguments, chance.traced(found)))

    def check_save(place):
        target = place if not isinstance(place, str) else tmp_path / place
        seen, found = chance.outcome(lambda: mergemoe.save(merged, target), seconds=20, megabytes=1000)
        if seen == "read":
            again = mergemoe.load(target, "cpu").state_dict()
            same = all(torch.equal(value, again[name]) for name, value in merged.state_dict().items())
            seen = "right" if same else "wrong"
            shutil.rmtree(target)
        counts[f"save: {seen}"] += 1
        if seen not in {"right", "refused"}:
            wrong.append((seen, place, chance.traced(found)))

    chance.examples("generated calls of load", given, check_load)
    chance.examples("generated calls of save", places | anything, check_save, each=5)
    chance.tell("generated calls of save and load", counts)
    assert not wrong, "\n".join(map(str, wrong[:20]))
