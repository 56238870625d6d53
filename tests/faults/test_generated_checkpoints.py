"""Generated checkpoints: config.json, index and headers; each is refused by name, or its weights are right."""

import copy
import json
import logging
import shutil
import warnings
from collections import Counter

import architectures
import chance
import pytest
import torch
import transformers
from by_stages import drawn
from first_look import look
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mergemoe
from mergemoe.checkpoints.model_folder import INDEX, SINGLE

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0), pytest.mark.usefixtures("own_module_cache")]

WORDS = [
    *("", "x", "4", "..", "/dev/zero", "/proc/self/mem", "../model.safetensors", "pytorch_model.bin", "a" * 5000),
    *(
        "flash_attention_2",
        "eager",
        "sdpa",
        "float64",
        "bfloat16",
        "F16",
        "U8",
        "I32",
        "I64",
        "F8_E4M3",
        "\ud83d",
        "\0",
    ),
    *(
        "gelu",
        "relu2",
        "yarn",
        "linear",
        "qwen2_moe",
        "mixtral",
        "modeling_mergemoe.MergeMoeX",
        "a/b--c.D",
        "{{ 1/0 }}",
    ),
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-4, 64),
    st.integers(0, 90).map(lambda power: 2**power),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
values = st.recursive(scalars, lambda one: st.lists(one, max_size=4) | st.dictionaries(st.sampled_from(WORDS), one))
KEYS = ["auto_map", "text_config", "vision_config", "quantization_config", "_attn_implementation", "dtype", "n_group"]
KEYS += ["num_local_experts", "tie_word_embeddings", "rope_scaling", "layer_types", "mergemoe", "model_type", "x", ""]


def leaves(tree, path=()):
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


@st.composite
def changed_json(draw, tree, keys=KEYS):
    """Draw a change of a JSON object: values, keys, a key twice, text; return its text."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        *parents, last = draw(st.sampled_from(list(leaves(tree))))
        place = tree
        for key in parents:
            place = place[key]
        how = draw(st.sampled_from(["put", "put", "near", "delete", "add"]))
        if how == "near" and type(place[last]) is int:
            place[last] += draw(st.integers(-3, 3))
        elif how in ("put", "near"):
            place[last] = draw(values)
        elif how == "delete":
            del place[last]
        else:
            tree[draw(st.sampled_from(keys))] = draw(values)
        if not list(leaves(tree)):
            break
    text = json.dumps(tree)
    how = draw(st.sampled_from(["", "", "", "twice", "cut", "text", "deep"]))
    at = draw(st.integers(0, len(text)))
    if how == "twice" and tree:
        key = draw(st.sampled_from(list(tree)))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(draw(values))}}}"
    elif how == "cut":
        text = text[:at]
    elif how == "text":
        text = text[:at] + draw(st.text(max_size=3)) + text[at + draw(st.integers(0, 4)) :]
    elif how == "deep":
        text = text[:-1] + ', "deep": ' + "[" * draw(st.sampled_from([10, 900, 100_000]))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def changed_shard(draw, content):
    """Draw a safetensors file whose header was changed, in an entry or as text, or whose bytes were cut."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    key = draw(st.sampled_from(list(header)))
    how = draw(
        st.sampled_from(["json", "entry", "entry", "shape", "dtype", "drop", "name", "order", "bytes", "length"])
    )
    entry = header[key]
    if how == "entry":
        entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(
            values | st.lists(st.integers())
        )
    elif how == "shape":
        shape = entry["shape"]
        one = [1 for _ in range(draw(st.integers(0, 70)))]
        entry["shape"] = draw(st.sampled_from([shape[::-1], [torch.tensor(shape).prod().item()], [*one, *shape], []]))
    elif how == "dtype":
        entry["dtype"] = draw(st.sampled_from(["I32", "U32", "F32", "F16", "BF16", "I64", "F64", "C64", "F8_E4M3"]))
    elif how == "drop":
        del header[key]
    elif how == "name":
        header[draw(st.sampled_from(WORDS) | st.just(key + "x") | st.just("a" * 1500))] = header.pop(key)
    elif how == "order":
        header = dict(sorted(header.items(), key=lambda _: draw(st.integers(0, 9))))
    text = json.dumps(header).encode() if how != "json" else draw(changed_json(header, list(header)))
    if how == "bytes":
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + draw(st.binary(min_size=1, max_size=4)) + text[at + 1 :]
    stated = draw(st.integers(0, 2**64 - 1) | st.integers(0, 4096)) if how == "length" else len(text)
    return stated.to_bytes(8, "little") + text + data


def single(folder):
    """Bring the weights into one file in one dtype."""
    tensors = {}
    for path in list(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A stock checkpoint and a compact one, {name: (folder, its weights as loaded)}."""
    folder = tmp_path_factory.mktemp("bases")
    full = single(architectures.save("qwen3_moe", folder / "full"))
    model = mergemoe.compress(mergemoe.load(full, "cpu"), drawn(), experts=4, method="average")
    mergemoe.save(model, folder / "compact")
    found = {name: single(folder / name) for name in ("full", "compact")}
    return {name: (one, mergemoe.load(one, "cpu").state_dict()) for name, one in found.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key].to(one[key].dtype)) for key in one)


def indexes(draw, keys):
    """Draw an index whose one shard is another file, or an index of anything."""
    shard, key = draw(st.sampled_from(["model-1.safetensors"] * 3 + WORDS)), draw(st.sampled_from(keys))
    stored = dict.fromkeys(keys, "model-1.safetensors")
    stored |= {key: draw(st.sampled_from(WORDS) | values)} if draw(st.booleans()) else dict.fromkeys(keys, shard)
    return draw(changed_json({"weight_map": stored, "metadata": {}}, keys))


def test_every_checkpoint_is_refused_by_name_or_its_weights_are_right(bases, tmp_path):
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    counts, wrong, folder = Counter(), {}, tmp_path / "changed"
    contents = {name: (one / SINGLE).read_bytes() for name, (one, _) in bases.items()}
    configs = {name: json.loads((one / "config.json").read_text()) for name, (one, _) in bases.items()}

    @st.composite
    def changes(draw):
        name = draw(st.sampled_from(list(bases)))
        what = draw(st.sampled_from(["config", "config", "config", "shard", "shard", "index"]))
        if what == "config":
            return name, {"config.json": draw(changed_json(configs[name]))}
        if what == "shard":
            return name, {SINGLE: draw(changed_shard(contents[name]))}
        length = int.from_bytes(contents[name][:8], "little")
        keys = [key for key in json.loads(contents[name][8 : 8 + length]) if key != "__metadata__"]
        return name, {SINGLE: None, "model-1.safetensors": contents[name], INDEX: indexes(draw, keys)}

    def check(drawn_change):
        name, files = drawn_change
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bases[name][0], folder)
        for file, content in files.items():
            (folder / file).unlink(missing_ok=True) if content is None else (folder / file).write_bytes(content)
        for what, call in {"look": look, "load": lambda one: mergemoe.load(one, "cpu").state_dict()}.items():
            if what == "look" and name == "compact":
                continue
            seen, found = chance.outcome(lambda: call(folder), seconds=20, megabytes=3000)  # noqa: B023
            if seen == "refused" and not (why := chance.unclear(str(found))):
                why = None if folder.name in str(found) or "config.json" in str(found) else "it names no file"
                seen = f"unclear: {why}" if why else seen
            elif seen == "read" and what == "load" and not equal(found, bases[name][1]):
                seen = "wrong weights"
            counts[f"{what} {seen}"] += 1
            if seen not in {"refused", "read"}:
                shown = {file: difference(content, bases[name][0] / file) for file, content in files.items()}
                at = chance.traced(found)
                wrong.setdefault((what, seen, at[-120:] or len(wrong)), f"{name} {shown} {at}")

    chance.examples("generated checkpoints", changes(), check, each=10)
    chance.tell("generated checkpoints", counts)
    if wrong:
        pytest.fail("\n".join(f"{seen[:2]}: {one}" for seen, one in list(wrong.items())[:30]), pytrace=False)


def difference(content, path):
    """Return the part of a changed file where it begins to differ from what it was."""
    if content is None or not path.is_file():
        return str(content)[:60]
    old = path.read_bytes()
    if path.name == SINGLE:
        try:
            one, other = (json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")]) for text in (old, content))
            keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            return str({key: (one.get(key), other.get(key)) for key in keys})[:400]
        except (ValueError, AttributeError):
            pass
    first = next((i for i, (a, b) in enumerate(zip(old, content, strict=False)) if a != b), 0)
    return content[max(0, first - 60) : first + 80]
