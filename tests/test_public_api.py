"""What `import mergemoe` offers: three functions, their types, and an example that runs."""

import ast
import re
import subprocess
import sys

from tiny_project import ROOT

import mergemoe

PACKAGE = ROOT / "mergemoe"


def test_the_public_names_are_typed_and_listed():
    imported = {
        alias.asname
        for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(mergemoe.__all__) == set(dir(mergemoe)) == {"compress", "load", "save"}
    assert (PACKAGE / "py.typed").is_file()
    assert all(callable(getattr(mergemoe, name)) for name in mergemoe.__all__)


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, mergemoe; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_example_of_the_docstring_runs(tmp_path, monkeypatch):
    example = "\n".join(re.findall(r"^    (.*)$", mergemoe.__doc__, re.MULTILINE))
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert len(names["model"].model.layers[0].mlp.experts.down_proj) == 8
