"""MkDocs hook: check every file, function and key that a page names in backticks; link those of the reference.

`least_squares.solve_down`, `merging/solve.py` and `evaluate.tasks` must exist in the project, else the strict build
fails. The code is parsed and never imported.
"""

import ast
import functools
import logging
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mergemoe", "stages", "tests", "benchmarks", "docs", "examples", "envs", "profiles", ".ci")
NOT_OURS = ("torch", "transformers", "numpy", "model")  # `model`: tensors, such as model.norm.weight
WRITTEN = ("modeling_mergemoe.py",)  # into checkpoints
CODE = re.compile(r"(?<![`\[])`([^`\n]+)`(?!`)")
DOTTED, FILE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"), re.compile(r"[\w./-]+\.(py|pyi|ipynb|md|toml|yaml)|[\w./-]+/")
DATA = re.compile(r".*\.(json|jsonl|gz|lock|h5|safetensors|html|csv|txt|log|css|js|bin|pt|pth|ckpt)")


@functools.cache
def names() -> dict[str, str]:
    """Return {dotted name in mergemoe or stages: the name under which the reference shows it}."""
    found = {}
    for path in [*ROOT.glob("mergemoe/**/*.py"), *ROOT.glob("stages/**/*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[module] = module
        for node in (body := ast.parse(path.read_text()).body):
            found |= dict.fromkeys(f"{module}.{name}" for name in _defined(node))
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                found |= dict.fromkeys(f"{module}.{node.name}.{name}" for name in _defined(part))
        home = next((node for node in body if "_HOME" in _defined(node)), None)  # the package's lazy names
        found |= {f"mergemoe.{key}": f"{value}.{key}" for key, value in ast.literal_eval(home.value).items()} if home else {}
    return {name: shown or re.sub(r"\._.*", "", name) for name, shown in found.items()}


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


@functools.cache
def keys() -> set[str]:
    """Return every key of params.yaml, and every field of its sections."""
    fields = {name for name in names() if ".workflow.config." in name}
    return {*re.findall(r"\w+(?=:)", (ROOT / "params.yaml").read_text()), *(name.rpartition(".")[2] for name in fields)}


def linked(text: str) -> tuple[str, list[str]]:
    """Return a page with its mentions as links, and the mentions that are unknown."""
    unknown, fenced, lines = [], False, []
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        lines.append(line if fenced else CODE.sub(lambda found: _link(found, unknown), line))
    return "\n".join(lines), unknown


def _link(found: re.Match[str], unknown: list[str]) -> str:
    mention = found[1]
    shown = {target for name, target in names().items() if name == mention or name.endswith(f".{mention}")}
    target = names().get(mention) or (shown.pop() if len(shown) == 1 else None)
    if FILE.fullmatch(mention) and mention.startswith(FOLDERS) or re.fullmatch(r"[\w./-]+\.pyi?", mention):
        path = next((base / mention for base in (ROOT, ROOT / "mergemoe") if (base / mention).exists()), None)
        module = path and ".".join(path.relative_to(ROOT).with_suffix("").parts)
        target = names().get(module)
        if not path and mention not in WRITTEN:
            unknown.append(mention)
    elif DOTTED.fullmatch(mention) and not (target or DATA.fullmatch(mention) or FILE.fullmatch(mention)):
        if mention.split(".")[0] not in NOT_OURS and not keys().issuperset(mention.split(".")):
            unknown.append(mention)
    heading = found.string.startswith("#")
    return f"[{found[0]}][{target}]" if target and "." in mention and not heading else found[0]


def on_files(files, config):
    """Add CONTRIBUTING.md as a page, and check the README."""
    text = (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=text))
    for mention in linked((ROOT / "README.md").read_text())[1]:
        logging.getLogger("mkdocs").warning("README.md names `%s`, which the project does not have", mention)


def on_page_markdown(markdown, page, config, files):
    """Link the mentions of a page; under --strict an unknown one fails the build."""
    text, unknown = linked(markdown)
    for mention in unknown:
        logging.getLogger("mkdocs").warning("%s names `%s`, which the project does not have", page.file.src_uri, mention)
    return text
