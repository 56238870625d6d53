"""Generated params.yaml: each is refused with the key or the line, or it is valid and its plan is made."""

import copy
import json
import re
from collections import Counter
from pathlib import Path

import chance
import pytest
import yaml
from hypothesis import strategies as st
from snakemake.common.configfile import load_configfile
from tiny_project import ROOT, copy_project

from mergemoe.workflow.config.params import Params, read_params
from mergemoe.workflow.config.params_file import read_file
from mergemoe.workflow.planning import plan, preflight, slurm_table
from stages.support.expected import every_claim
from stages.support.graph import Graph

pytestmark = [pytest.mark.chance, pytest.mark.timeout(0)]

TINY = yaml.safe_load((ROOT / "tests/tiny/params.yaml").read_text())
MORE = {  # choices of each kind, so that a run may take another
    "cluster": {
        "pairs": {"by": "selection", "experts": 4, "width": 0.5, "max_size": 4, "search": "quick"},
        "spent": {"by": "selection", "share": 0.5, "per": "layer"},
        "used": {"by": "router", "experts": 0.5, "budget": "usage", "layers": "1-2"},
        "whole": {"by": "none"},
        "salient": {"by": "saliency", "experts": 0.5},
    },
    "solve": {
        "reap": {"method": "reap"},
        "joint": {"method": "joint", "ridge": "auto", "memory": 8.0, "features": "selected", "width": 0.5},
        "oracle": {"method": "oracle"},
        "slim": {"method": "slim", "width": 0.5},
    },
    "refine": {"router": {"by": "layer", "parts": ["up", "router"], "targets": "recomputed"}},
}
BASE = {
    section: {**content, **MORE.get(section, {})} if section in MORE else content for section, content in TINY.items()
}
KEYS = set(BASE) | {"top level", "params.yaml"}


def leaves(tree, path=()):
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key), value
        yield from leaves(value, (*path, key))


PATHS = [path for path, _ in leaves(BASE)]
NUMBERS = [path for path, value in leaves(BASE) if type(value) in (int, float)]
VALUES = [value for _, value in leaves(BASE)]
WORDS = [
    *("all", "auto", "none", "usage", "error", "model", "layer", "2-1", "1", "float16", "selected", "folded", "pruned"),
    *("", ".", "..", "/", "~", "/dev/zero", "/proc/self/mem", "results", "./results", "-x", "a b", "x{y}", "{", "a\nb"),
    *("layer_1", "provenance", "full", "fidelity", "generation", "mergemoe-seven", "odd", "odd/plain.txt", "tiny-moe"),
    *("1e-3", "1e400", "0x" + "f" * 30, "0-" + "9" * 5000, "\u0663", "\ud83d", "\0", "\x1b[2J", "\u202e", "é" * 90),
]
names = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=12),
    st.tuples(st.text("ab1_", min_size=1, max_size=3), st.integers(1, 300)).map(lambda made: made[0] * made[1]),
    st.integers(1_000, 1_000_000).map(lambda count: "n" * count),
)
numbers = st.one_of(
    st.integers(),
    st.integers(0, 64),
    st.integers(0, 90).map(lambda power: 2**power),
    st.integers(4000, 6000).map(lambda digits: 10**digits),
    st.floats(),
    st.floats(0, 1, exclude_min=True),
    st.integers(1, 320).map(lambda power: float(f"1e-{power}")),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, names)


def nested(depth):
    made = []
    for _ in range(depth):
        made = [made]
    return made


values = st.one_of(
    scalars,
    st.sampled_from(VALUES),
    st.recursive(scalars, lambda one: st.lists(one, max_size=4) | st.dictionaries(names, one, max_size=3)),
    st.integers(1, 300).map(nested),
)
NODES = [  # of YAML, for the place of a value
    *("&a {by: weights, experts: 2}", "*a", "!!python/name:os.system", "!!python/object/apply:os.abort []", "!x 1"),
    *("!!set {a, b}", "!!binary aGk=", "!!timestamp 2001-01-01", "2001-99-99", "1:30:00", "0o17", "1_000", "!!int x"),
    *(
        "!!float 1",
        "!!str 5",
        "!!null x",
        "yes",
        "=",
        "? x : y",
        "{<<: *a}",
        "{<<: [1]}",
        "{[a]: 1}",
        "{1: a, true: b}",
    ),
    *(
        "|\n  text",
        ">-\n  text",
        "[",
        "}",
        "'",
        '"\\q"',
        "%x",
        "@",
        "`",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "{x: 1, x: 2}",
    ),
    *(
        "0b1" + "0" * 20_000,
        "1:" * 4000 + "1",
        "0x" + "f" * 5000,
        "1" * 5000,
        "1." + "0" * 5000 + "e5",
        "-.inf",
        ".NaN",
    ),
]
LINES = [
    *("__use_yte__: true", "__definitions__: [1]", "?solve: x", "?if True: 1", "...", "---", "--- {}", "%YAML 1.2"),
    *(
        "%TAG ! tag:x,2000:",
        "\tx: 1",
        "x:",
        "- 1",
        "# \u2028x: 1",
        "<<: {capture: {}}",
        "? [a]\n: 1",
        "\ufeffx: 1",
        "\0",
    ),
    "b0: &b0 [x, x]\n" + "\n".join(f"b{n + 1}: &b{n + 1} [*b{n}, *b{n}, *b{n}]" for n in range(24)),
    "capture: &c {threads: *c}",
    "runs: &r [*r]",
    "a: " + "[" * 3000,
    "a:\n" + "".join(" " * n + "- \n" for n in range(800)),
    "cluster: {" + ", ".join(f"c{n}: {{by: none}}" for n in range(3000)) + "}\nruns: all",
    "x: '" + "y" * 300_000 + "'",
]


def written(value):
    """Return a value as a node of YAML in flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)}: {written(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, Node):
        return str(value)
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), f"{value:.17e}")
    if type(value) is int:
        return str(value) if abs(value) < 1 << 9000 else hex(value)
    return json.dumps(value)


NEAR = {  # values that may well be valid in place of one of this type
    int: st.integers(0, 64) | st.sampled_from([2**20, 2**31, 2**40]),
    float: st.floats(0, 1) | st.integers(1, 320).map(lambda power: float(f"1e-{power}")),
    str: st.sampled_from([value for value in VALUES if isinstance(value, str)] + WORDS),
}


class Node(str):
    """YAML, as it stands."""


def name_of(key):
    return key if type(key) is str else written(key)


def lines_of(tree):
    return [f"{name_of(key)}: {written(value)}" for key, value in tree.items()]


GOOD = [line.encode() for line in lines_of(BASE)]


@st.composite
def files(draw):
    """Draw the bytes of a params.yaml: one that is good, changed in a few places, as values and as text."""
    tree = copy.deepcopy(BASE)
    by_value, by_text = draw(st.sampled_from([(1, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 1), (0, 2), (1, 1)]))
    for _ in range(by_value):
        *parents, last = draw(st.sampled_from(PATHS) | st.sampled_from(NUMBERS))
        place = tree
        try:
            for key in parents:
                place = place[key]
            how = draw(st.sampled_from(["put", *["near"] * 6, "delete", "name", "add", "runs"]))
            if how == "put":
                place[last] = draw(values | st.sampled_from(NODES).map(Node))
            elif how == "near" and type(place[last]) in NEAR:
                place[last] = draw(NEAR[type(place[last])])
            elif how == "delete":
                del place[last]
            elif how == "name":
                place[draw(names | numbers)] = place.pop(last)
            elif how == "add":
                place[draw(names)] = draw(values)
            else:
                tree["runs"] = draw(st.sampled_from(["all", [], *RUNS]))
        except (KeyError, IndexError, TypeError, AttributeError):  # an earlier change took the place away
            continue
    if draw(st.booleans()):
        tree["runs"] = draw(st.sampled_from(RUNS))
    lines = lines_of(tree)
    for _ in range(draw(st.integers(0, 2)) if by_text else 0):
        at = draw(st.integers(0, len(lines)))
        lines.insert(at, draw(st.sampled_from([*LINES, *lines])))
    text = "\n".join(lines) + "\n"
    for _ in range(by_text):
        at = draw(st.integers(0, len(text)))
        end = at + draw(st.integers(0, 8))
        text = text[:at] + draw(st.text(max_size=3) | st.text("{}[]&*!|>%@`'\"#:,-? \t\n", max_size=4)) + text[end:]
    if draw(st.integers(0, 9)) == 0:
        text = "{" + ", ".join(f"{json.dumps(name_of(key))}: {written(value)}" for key, value in tree.items()) + "}"
    encoding = draw(st.sampled_from([*["utf-8"] * 30, "utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


RUNS = ["all", *([[["tiny", "mixed", c, s]] for c in BASE["cluster"] for s in BASE["solve"]])]
RUNS += [[["tiny", "mixed", c, s, r]] for c in BASE["cluster"] for s in BASE["solve"] for r in BASE["refine"]]
RUNS += [[run] for run in map(list, read_params({**BASE, "runs": "all"}).all_runs())] * 3  # those that fit


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the tiny model, its texts and tasks, and a folder `odd` of things that are no texts."""
    folder = copy_project(tmp_path_factory.mktemp("params") / "project")
    odd = folder / "odd"
    (odd / "folder.yaml").mkdir(parents=True)
    (odd / "broken.yaml").symlink_to("nowhere")
    (odd / "plain.txt").write_text("some text\n" * 100)
    (odd / "bytes.yml").write_bytes(b"task: odd\n\xff\0")
    return folder


def planned(path):
    """Read and plan as `mergemoe plan` does, and claim every job as the Snakefile does."""
    content = read_file(path)
    params = read_params(content, path)
    preflight.check_params(params)
    text = plan.plan_text(params, Path("results")) + slurm_table.slurm_text(params)
    claims = every_claim(Graph(params))
    return content, params, text, claims


def plain(content):
    """Return what Snakemake read with Python's own mappings."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    return [plain(value) for value in content] if isinstance(content, list) else content


def fault_of_plan(path, content, params: Params, text, claims):
    """Return what is wrong with a plan that was made; None if nothing is."""
    if repr(plain(load_configfile(path))) != repr(content):  # NaN differs from itself
        return "Snakemake reads another content"
    if not claims or not all(run.name in text or run.subject in text for run in params.all_runs()):
        return "a run without a plan"
    json.dumps(claims, allow_nan=False)
    for run in params.all_runs():
        if any(not 1 <= kept <= n for n, kept in plan.kept_per_layer(params, run).values()):
            return f"{run.name} keeps {plan.kept_per_layer(params, run)}"
        if any(not 1 <= width <= 24 for width in plan.kept_widths(params, run).values()):
            return f"{run.name} keeps {plan.kept_widths(params, run)}"
        if plan.run_size(params, run)["parameters"] <= 0:
            return "a model without parameters"
    return None


def names_the_place(message):
    """Tell whether a refusal names the file and a line, or a key, or a run."""
    if re.search(r"params.yaml (cannot be read as YAML|holds no sections|has __use_yte__)", message):
        return True
    return any(re.match(rf" *{section}\b", line) for line in message.splitlines() for section in KEYS) or bool(
        re.match(r"\w+/\w+/\w+/\w+(\+\w+)?: ", message)
    )


def test_every_file_is_refused_with_its_place_or_planned(project, monkeypatch):
    monkeypatch.chdir(project)
    counts, wrong = Counter(), {}
    path = project / "params.yaml"

    def check(content):
        path.write_bytes(content)
        seen, found = chance.outcome(lambda: planned("params.yaml"))
        if seen == "refused":
            why = chance.unclear(str(found)) or (None if names_the_place(str(found)) else "a message without a place")
            seen = f"unclear: {why}" if why else seen
        elif seen == "read":
            fault, _ = chance.outcome(lambda: fault_of_plan("params.yaml", *found))
            why = found if fault != "read" else _
            seen = "planned" if (fault, _) == ("read", None) else f"wrong: {fault} {why}"
        counts[seen] += 1
        if seen not in {"refused", "planned"}:
            changed = [line for line in content.split(b"\n") if line not in GOOD]
            wrong.setdefault(seen, f"{b' '.join(changed)[:600]!r} {chance.traced(found)}")

    chance.examples("generated params", files(), check)
    chance.tell("generated params", counts)
    if wrong:
        pytest.fail("\n".join(f"{seen[:300]}: {one}" for seen, one in list(wrong.items())[:20]), pytrace=False)
