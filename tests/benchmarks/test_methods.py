"""The bench of methods: what it runs is of equal size, and the documents show what was measured."""

import importlib.util
import re

import pytest
from tiny_project import ROOT

from mergemoe.workflow.config.params import read_params

spec = importlib.util.spec_from_file_location("methods", ROOT / "benchmarks" / "methods.py")
methods = importlib.util.module_from_spec(spec)
spec.loader.exec_module(methods)


@pytest.mark.parametrize("name", methods.COMPARISONS)
def test_all_methods_of_a_column_keep_the_same_share_of_the_weights(name):
    params = read_params(methods.params(name))
    shares = [methods.SHARES[share] for share in methods.COMPARISONS[name]["shares"]]
    groups = [
        (params.cluster[run.cluster], params.kept_width(run.cluster, run.solve, 128) / 128) for run in params.all_runs()
    ]
    kept = [chosen.share or chosen.experts * width for chosen, width in groups]
    assert sorted(kept) == sorted(shares * (len(methods.SEEDS) * len(methods.COMPARISONS[name]["methods"])))


def test_every_method_but_the_one_that_grows_has_a_row():
    from mergemoe.methods.catalogue import METHODS

    named = {keys["method"] for _, keys in methods.METHODS.values()}
    assert set(METHODS) - named == {"oracle", "unsolved"}  # unsolved is other methods under another name


def test_the_documents_show_what_was_measured():
    text = "".join((ROOT / file).read_text() for file in ("docs/benchmarks.md", "docs/log.md"))
    shown = re.findall(r"<!-- table: python benchmarks/methods.py table (\w+) -->\n(.*?)<!-- end", text, re.DOTALL)
    assert {name for name, _ in shown} == {path.stem for path in methods.FOLDER.glob("*.json")}
    for name, table in shown:
        assert table.strip() == "\n".join(methods.table(name))


def test_a_mean_and_its_deviation_are_of_the_seeds(tmp_path, monkeypatch):
    scores = [{"fidelity/kl": kl} for kl in (1.0, 2.0, 3.0)]
    runs = {f"mixed_{seed}/weights_50/average": one for seed, one in enumerate(scores)}
    runs |= {f"mixed_{seed}/none/slim_50": one for seed, one in enumerate(scores)}
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    (tmp_path / "demo.json").write_text(
        methods.json.dumps({"demo": {"full": {"fidelity/perplexity": 9}, "runs": runs}})
    )
    found = methods.measured("demo")
    assert found["slim"]["50"]["fidelity/kl"] == [1.0, 2.0, 3.0]
    (*_, row) = methods.rows(found, ["average"], [("KL", "50", "fidelity/kl", True)])
    assert row == "| average | **2 ± 1** |"
