"""Measure what the workflow costs when there is next to nothing to compute: a dry run, and jobs of a tiny model.

python benchmarks/overhead.py [--layers 48] [--repeat 5]
python benchmarks/overhead.py table      # reads benchmarks/results/overhead.json

The model has layers of 8 experts, 32 wide; the params.yaml is the demo's with that model and 8 sequences of 32 tokens,
which is five runs. The dry run is `snakemake -n` of the project without results; a job is one command of the Snakefile
on one layer. They take turns in processes of their own, with `python -X importtime`, which tells the seconds of all
imports, also of those that the work asks for. The rest is the interpreter, arguments, reading, digests, computing,
writing; of the dry run the Snakefile and its jobs. CPU seconds depend less on what else the machine does.
"""

import argparse
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]  # also when a test loads this file
import stages  # noqa: E402, F401  # sets MKL's code path and thread counts before torch is imported

# isort: split
import kept_rows  # noqa: E402
import machine  # noqa: E402
import memory  # noqa: E402
import yaml  # noqa: E402
from transformers import Qwen3MoeConfig  # noqa: E402

JOBS = ("profile", "cluster", "solve")
SOLVED = "results/solve/demo/mixed/half/mergemoe/layer_000.safetensors"
TINY = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "dtype": "bfloat16",
}


def write_project(project: Path, layers: int) -> None:
    """Write a project with a tiny model of so many layers, and the demo's runs."""
    for name in ("mergemoe", "stages", "profiles", "data/blimp", "data/calibration", "data/heldout"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "envs").mkdir()
    for name in ("Snakefile", "envs/conda.yaml"):
        shutil.copyfile(ROOT / name, project / name)
    memory.write_checkpoint(project / "model", Qwen3MoeConfig(**TINY, num_hidden_layers=layers))
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["model"]["demo"]["path"] = "model"
    params["calibrate"]["mixed"] |= {"samples": 8, "length": 32, "holdout": 0.25}
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def run(project: Path, *command: str) -> tuple[dict[str, float], str]:
    """Run Python in the project; return its seconds, CPU seconds and seconds of imports, and the output."""
    environment = os.environ | {"PYTHONPATH": str(project)}
    start, before = time.perf_counter(), sum(os.times()[2:4])
    traced = [sys.executable, "-X", "importtime", *command]
    done = subprocess.run(traced, cwd=project, env=environment, capture_output=True, text=True)
    took, cpu = time.perf_counter() - start, sum(os.times()[2:4]) - before
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    imports = sum(map(int, re.findall(r"^import time: +(\d+) \|", done.stderr, re.MULTILINE))) / 1e6
    return {"seconds": took, "cpu_seconds": cpu, "import_seconds": imports}, done.stdout


def clear(project: Path, command: list[str]) -> None:
    """Delete the outputs of a stage's command, and what the workflow keeps of them."""
    out = project / command[command.index("--out") + 1]
    out.unlink(missing_ok=True)
    out.with_suffix(".json").unlink(missing_ok=True)
    shutil.rmtree(project / "results/.finished", ignore_errors=True)


def commands(project: Path) -> tuple[dict[str, list[str]], int]:
    """Return the arguments of Python for each thing that is timed, and the number of jobs of the dry run."""
    dry = ["-m", "snakemake", "--cores", "1", "-n"]
    totals = [line.split()[1] for line in run(project, *dry)[1].splitlines() if line.startswith("total ")]
    told = run(project, *dry, "-p", SOLVED)[1].splitlines()
    found = {"snakemake -n": [*dry, "--quiet"]}
    for job in JOBS:
        line = next(line for line in told if f"python -m stages.{job} " in line)
        found[job] = shlex.split(line.partition("python ")[2].partition(" 2> ")[0])
    run(project, "-m", "snakemake", "--cores", "1", "--quiet", "all", "--", SOLVED)
    return found, int(totals[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of each thing that is timed, in turns."""
    with tempfile.TemporaryDirectory() as parent:
        project = Path(parent, "project")
        write_project(project, args.layers)
        timed, jobs = commands(project)
        shutil.copytree(project, fresh := Path(parent, "fresh"), ignore=shutil.ignore_patterns("results", "logs"))
        found: dict[str, list[dict[str, float]]] = {name: [] for name in timed}
        for _ in range(args.repeat):
            for name, command in timed.items():
                if name in JOBS:
                    clear(project, command)
                found[name].append(run(project if name in JOBS else fresh, *command)[0])
                print(name, found[name][-1], file=sys.stderr)
    return {"jobs": jobs, "turns": found}


def table(rows: list[kept_rows.Row]) -> str:
    """Return the figures as Markdown."""
    lines: list[list[str]] = []
    for row in rows:
        for name, turns in row["turns"].items():
            what = f"`{name}`, {row['layers']} layers, {row['jobs']} jobs" if name not in JOBS else f"job of `{name}`"
            shares = [turn["import_seconds"] / turn["seconds"] for turn in turns]
            rest = [turn["cpu_seconds"] * (1 - share) for turn, share in zip(turns, shares, strict=True)]
            wall, cpu = ([turn[key] for turn in turns] for key in ("seconds", "cpu_seconds"))
            cells = [*(f"{statistics.median(each):.1f}" for each in (wall, cpu)), f"{statistics.median(shares):.0%}"]
            cells.append(f"{statistics.median(rest):.1f}")
            lines.append([what, *cells])
    return kept_rows.markdown(["what", "s", "CPU s", "imports", "CPU s of the rest"], lines)


def main() -> None:
    """Read the command line; measure, keep the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="measure", choices=["measure", "table"])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    if args.what == "measure":
        kept_rows.keep("overhead", {"layers": args.layers, "machine": machine.describe()}, measure(args))
    print(table(kept_rows.read("overhead")))


if __name__ == "__main__":
    main()
