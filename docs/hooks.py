"""MkDocs hook: check every file, function and key that a page names in backticks, and link it to the reference.

`least_squares.solve_down`, `merging/solve.py` and `evaluate.tasks` must exist in the project, else the strict build
fails. The code is parsed and never imported.
"""

import ast
import functools
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LOG = logging.getLogger("mkdocs")
FOLDERS = ("mergemoe", "stages", "tests", "benchmarks", "docs", "examples", "envs", "profiles")
NOT_OURS = ("torch", "transformers", "numpy", "model", "norm")  # the last two begin names of tensors
WRITTEN = ("modeling_mergemoe.py",)  # into checkpoints
CODE = re.compile(r"(?<![`\[])`([^`\n]+)`(?!`)")
PYTHON = re.compile(r"[\w./-]+\.pyi?")
FILE = re.compile(rf"({'|'.join(FOLDERS)})/[\w./-]*")
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
DATA = re.compile(r".*\.(json|yaml|toml|md|jsonl|gz|lock|h5|safetensors|html|csv|txt|log|css|js|bin|pt|pth|ckpt)")


@functools.cache
def names() -> dict[str, str]:
    """Return {dotted name in mergemoe or stages: the name under which the reference shows it}."""
    found = []
    for path in [*ROOT.glob("mergemoe/**/*.py"), *ROOT.glob("stages/**/*.py")]:
        found += [module_of(path), *_members(module_of(path), ast.parse(path.read_text()).body)]
    package = ast.parse((ROOT / "mergemoe/__init__.py").read_text()).body
    (home,) = (node.value for node in package if isinstance(node, ast.Assign) and "_HOME" in _defined(node))
    public = {f"mergemoe.{name}": f"{module}.{name}" for name, module in ast.literal_eval(home).items()}
    return {name: re.sub(r"\._.*", "", name) for name in found} | public


def module_of(path: Path) -> str:
    """Return the dotted name of a Python file of the project."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _members(place: str, body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        yield from (f"{place}.{name}" for name in _defined(node))
        yield from _members(f"{place}.{node.name}", node.body) if isinstance(node, ast.ClassDef) else ()


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


@functools.cache
def keys() -> set[str]:
    """Return every key of params.yaml and every field of its sections."""
    fields = (name.rpartition(".")[2] for name in names() if name.startswith("mergemoe.workflow.config."))
    return {*re.findall(r"\w+(?=:)", (ROOT / "params.yaml").read_text()), *fields}


def linked(text: str) -> tuple[str, list[str]]:
    """Return a page with its mentions as links, and the mentions that are unknown."""
    unknown, fenced, lines = [], False, []
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        lines.append(line if fenced else CODE.sub(lambda found: _link(found, unknown), line))
    return "\n".join(lines), unknown


def _link(found: re.Match[str], unknown: list[str]) -> str:
    mention, target = found[1], None
    if FILE.fullmatch(mention) or PYTHON.fullmatch(mention):
        path = next((base / mention for base in (ROOT, ROOT / "mergemoe") if (base / mention).exists()), None)
        target = names().get(module_of(path)) if path and path.suffix == ".py" and "/" in mention else None
        known = path is not None or mention in WRITTEN
    elif DOTTED.fullmatch(mention) and not DATA.fullmatch(mention):
        ends = [name for name in names() if name.endswith(f".{mention}")]
        target = names().get(mention) or (names()[ends[0]] if len(ends) == 1 else None)
        known = target or mention.startswith(NOT_OURS) or keys().issuperset(mention.split("."))
    else:
        known = True
    if not known:
        unknown.append(mention)
    return f"[{found[0]}][{target}]" if target and not found.string.startswith("#") else found[0]


def on_files(files, config):
    """Add CONTRIBUTING.md as a page, and check the README."""
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=text))
    _warn("README.md", linked((ROOT / "README.md").read_text())[1])


def on_page_markdown(markdown, page, config, files):
    """Link the mentions of a page; a warning about an unknown one fails the strict build."""
    text, unknown = linked(markdown)
    _warn(page.file.src_uri, unknown)
    return text


def _warn(page: str, unknown: list[str]) -> None:
    for mention in unknown:
        LOG.warning("%s: `%s` names nothing, or several things, in this project. Correct it.", page, mention)
