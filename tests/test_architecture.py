"""The layout of the house: packages, what each stage's code may be, sizes. `lint-imports` holds the layers."""

import ast
from pathlib import Path

import pytest
from tiny_project import ROOT

from stages.support import tracking

PACKAGES = [path.parent for path in sorted((ROOT / "mergemoe").rglob("__init__.py"))]
GROUND = {"artifacts", "checkpoints"}
CODE = {  # the packages that the code digest of a stage may cover
    "convert": GROUND | {"models", "moe"},
    "layout": GROUND | {"models", "moe"},
    "calibrate": GROUND | {"calibration"},
    "capture": GROUND | {"calibration", "models", "moe"},
    "profile": GROUND | {"calibration", "moe"},
    "curve": GROUND | {"calibration", "moe", "merging", "methods", "grouping"},
    "budget": GROUND | {"moe", "grouping"},
    "cluster": GROUND | {"calibration", "moe", "merging", "grouping"},
    "solve": GROUND | {"calibration", "moe", "merging"},  # and the file of its method
    "refine": GROUND | {"calibration", "moe", "reconstruction"},
    "quantize": GROUND | {"calibration", "methods", "moe", "quantization", "reconstruction"},  # methods: options.Option
    "assemble": GROUND | {"models", "moe", "compressed", "quantization"},
    "reference": GROUND | {"calibration", "models", "moe"},
    "fidelity": GROUND | {"calibration", "models", "moe", "compressed", "evaluation"},
    "generate": GROUND | {"calibration", "models", "moe", "compressed", "evaluation"},
    "evaluate": GROUND | {"calibration", "models", "moe", "compressed", "evaluation"},  # calibration: text_rows
    "report": GROUND | {"moe", "compressed", "report"},
    "report_partial": GROUND | {"moe", "compressed", "report"},
}


@pytest.mark.parametrize("folder", PACKAGES[1:], ids=lambda folder: folder.name)
def test_the_init_of_a_sub_package_is_a_docstring_alone(folder):
    body = ast.parse((folder / "__init__.py").read_text()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and ast.get_docstring(ast.Module(body, []))


@pytest.mark.parametrize("stage", CODE)
def test_the_code_of_a_stage_covers_only_its_packages(stage):
    files = [path.relative_to(ROOT) for path in tracking.sources(f"stages.{stage}")]
    assert {path.parts[1] for path in files if path.parts[0] == "mergemoe" and len(path.parts) > 2} <= CODE[stage]


def test_every_rule_module_is_listed():
    stages = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__", "ledger"}
    assert stages == set(CODE)


def no_encoding(call):
    """Tell whether a call reads or writes text in whatever encoding the locale of a machine has."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    words = [part.value for part in (*call.args, *given.values()) if isinstance(part, ast.Constant)]
    if name == "open":
        return "encoding" not in given and any(isinstance(word, str) and word in ("r", "w", "a", "x") for word in words)
    text = name in ("read_text", "write_text") or (name in ("run", "Popen") and True in words and "text" in given)
    return text and "encoding" not in given


def test_text_is_utf_8_whatever_the_locale():
    files = [path for name in ("mergemoe", "stages") for path in (ROOT / name).rglob("*.py")]
    calls = ((path, node) for path in files for node in ast.walk(ast.parse(path.read_text())))
    found = [(str(path), node.lineno) for path, node in calls if isinstance(node, ast.Call) and no_encoding(node)]
    assert found == []


def test_no_module_is_long_and_no_folder_is_crowded():
    files = [path for name in ("mergemoe", "stages") for path in (ROOT / name).rglob("*.py")]
    assert {str(path): n for path in files if (n := len(path.read_text().splitlines())) > 250} == {}
    folders: dict[Path, int] = {}
    for path in files:
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    assert {
        str(folder): n for folder, n in folders.items() if n > 16 and folder != ROOT / "stages"
    } == {}  # there, one per rule
