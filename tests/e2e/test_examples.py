"""The examples run, and their stored outputs are what they print."""

import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_project import ROOT

EXAMPLES = ROOT / "examples"


def printed(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def scores(text):
    """Return {model: [parameters, perplexity, kl]} of the notebook's table."""
    rows = re.findall(r"^(full|mergemoe|select) +([\d,]+) +([\d.]+) +([\d.]+)$", text, re.MULTILINE)
    return {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in rows}


@pytest.mark.full
def test_the_notebook_compresses_compares_saves_and_reloads():
    notebook = nbformat.read(EXAMPLES / "compress_in_memory.ipynb", as_version=4)
    stored = printed(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": EXAMPLES}}).execute()
    found = printed(notebook)
    assert found.count("the same logits") == 2
    (full, mergemoe, select) = scores(found).values()
    assert full[0] > mergemoe[0] == select[0]
    assert 0 == full[2] < select[2] < mergemoe[2]
    assert full[1] < select[1] < mergemoe[1]
    for name, row in scores(stored).items():
        assert scores(found)[name] == pytest.approx(row, rel=0.02)


def test_the_new_method_runs_through_solve():
    run = subprocess.run([sys.executable, EXAMPLES / "add_a_method.py"], capture_output=True, text=True, check=True)
    errors = {name: float(error) for name, error in map(str.split, run.stdout.splitlines())}
    assert list(errors) == ["average", "dominant", "routed"]
    assert 0 < errors["routed"] < errors["average"] < errors["dominant"] < 1
