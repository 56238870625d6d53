"""Measure what the workflow costs when there is next to nothing to compute: a dry run, and jobs of a tiny model.

python benchmarks/overhead.py [--layers 48] [--repeat 5]
python benchmarks/overhead.py table      # reads benchmarks/results/overhead.json

The model has layers of 8 experts, 32 wide; the params.yaml is the demo's with that model and 8 sequences of 32 tokens,
which is five runs. The dry run is `snakemake -n` of the project without results; a job is one command of the Snakefile
on one layer. Each runs in a process of its own, in turn with `python -c pass` and with its imports alone. Seconds, CPU
seconds, and of these:

start     the interpreter
imports   of the module that runs, with torch where it needs it
work      all else: arguments, reading, digests, computing, writing; of the dry run the Snakefile and its jobs
"""

import argparse
import os
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


def run(project: Path, *command: str) -> tuple[float, float, str]:
    """Run Python in the project; return the seconds, the CPU seconds with those of its children, and the output."""
    environment = os.environ | {"PYTHONPATH": str(project)}
    start, before = time.perf_counter(), sum(os.times()[2:4])
    done = subprocess.run([sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True)
    took, cpu = time.perf_counter() - start, sum(os.times()[2:4]) - before
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return took, cpu, done.stdout


def clear(project: Path, command: list[str]) -> None:
    """Delete the outputs of a stage's command, and what the workflow keeps of them."""
    out = project / command[command.index("--out") + 1]
    out.unlink(missing_ok=True)
    out.with_suffix(".json").unlink(missing_ok=True)
    shutil.rmtree(project / "results/.finished", ignore_errors=True)


def commands(project: Path) -> tuple[dict[str, list[str]], int]:
    """Return the arguments of Python for each thing that is timed, and the number of jobs of the dry run."""
    dry = ["-m", "snakemake", "--cores", "1", "-n"]
    totals = [line.split()[1] for line in run(project, *dry)[2].splitlines() if line.startswith("total ")]
    told = run(project, *dry, "-p", SOLVED)[2].splitlines()
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
        found = {name: {part: [] for part in ("start", "imports", "whole", "wall")} for name in timed}
        for _ in range(args.repeat):
            for name, command in timed.items():
                job = name in JOBS
                module = f"stages.{name}" if job else "snakemake.cli"
                if job:
                    clear(project, command)
                each = {"start": ["-c", "pass"], "imports": ["-c", f"import {module}"], "whole": command}
                for part, arguments in each.items():
                    wall, cpu, _ = run(project if job else fresh, *arguments)
                    found[name][part].append(cpu)
                found[name]["wall"].append(wall)
                print(name, {part: f"{took[-1]:.2f}" for part, took in found[name].items()}, file=sys.stderr)
    return {"jobs": jobs, "cpu_seconds": found}


def table(rows: list[kept_rows.Row]) -> str:
    """Return the figures as Markdown."""
    lines: list[list[str]] = []
    for row in rows:
        for name, took in row["cpu_seconds"].items():
            what = f"`{name}`, {row['layers']} layers, {row['jobs']} jobs" if name not in JOBS else f"job of `{name}`"
            parts = (
                took["wall"],
                took["whole"],
                took["start"],
                [b - a for a, b in zip(took["start"], took["imports"], strict=True)],
                [b - a for a, b in zip(took["imports"], took["whole"], strict=True)],
            )
            lines.append([what, *(f"{statistics.median(part):.2f}" for part in parts)])
    return kept_rows.markdown(["what", "s", "CPU s", "start", "imports", "work"], lines)


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
