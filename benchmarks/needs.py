"""Compare what mergemoe/workflow/planning/resources/job_resources.py estimates with what finished jobs took.

python benchmarks/needs.py [PROJECT ...]    # folders with params.yaml and logs/, each after a run of snakemake
python benchmarks/needs.py --make DIR       # writes one there: layers as wide as those of Qwen1.5-MoE-A2.7B

A project that --make wrote runs in its folder, as `python -m snakemake --cores 1 stage_solve` or with the scores
that are wanted as targets; `all` would take an hour. A table has a line per rule and choice of `cluster` and `solve`;
the ratio is that of the job whose estimate is nearest to what it took, or below it. Ends with 1 where a ratio is
outside [1, 2].
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mergemoe.workflow.config.params import Params, read_params  # noqa: E402
from mergemoe.workflow.planning.resources import job_resources  # noqa: E402

LINKED = ("Snakefile", "stages", "mergemoe", "data", "profiles", "envs")
# The folders and the name of a log, below its rule's.
NAMES = {
    **dict.fromkeys(("convert", "layout", "reference"), "model"),
    **dict.fromkeys(("calibrate", "capture"), "model calibrate"),
    "profile": "model calibrate layer",
    **dict.fromkeys(("curve", "cluster"), "model calibrate cluster layer"),
    "budget": "model calibrate cluster",
    "solve": "model calibrate cluster solve layer",
    "refine": "model calibrate cluster solve refine layer",
    "assemble": "model calibrate cluster solution",
    **dict.fromkeys(("fidelity", "generate"), "model subject"),
    "evaluate": "model subject task",
    **dict.fromkeys(("report", "report_partial"), ""),
}
QWEN15_MOE_A27B = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "num_hidden_layers": 1,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
CHOSEN = ("cluster", "solve", "refine", "solution", "subject", "task")  # wildcards that a line of the table names
FEW = 6  # experts of a second model, at whose width the grouping `selection` takes minutes
SOURCE = {"samples": 16, "length": 256}
HOW = {"dtype": "float32", "batch_tokens": 2048}
CHOICES = {
    "model": {"qwen": {"path": "qwen"}, "few": {"path": "few"}},
    "calibrate": {"mixed": {"source": "data/calibration/mixed.jsonl.gz", **SOURCE}},
    "capture": HOW,
    "cluster": {
        "half": {"by": "weights", "experts": 0.5},
        "quarter": {"by": "weights", "experts": 0.25},
        "four": {"by": "weights", "experts": 4},
        "eight": {"by": "weights", "experts": 8, "max_size": 12},
        "router": {"by": "router", "experts": 0.5},
        "outputs": {"by": "outputs", "experts": 0.5},
        "salient": {"by": "saliency", "experts": 0.5},
        "each": {"by": "none"},
        "pairs": {"by": "selection", "experts": 0.5},
    },
    "solve": {
        "average": {"method": "average"},
        "mergemoe": {"method": "mergemoe"},
        "msmoe": {"method": "msmoe"},
        "zipit": {"method": "zipit"},
        "routed": {"method": "routed"},
        "joint": {"method": "joint"},
        "iterative": {"method": "joint", "ridge": 1.0, "memory": 2.0},
        "select": {"method": "select"},
        "slim": {"method": "slim", "width": 0.5, "ridge": 1.0, "memory": 2.0},
        "reap": {"method": "reap"},
    },
    "evaluate": {
        "tasks": {"blimp": {"include": "data/blimp", "limit": 4}},
        "heldout": {"source": "data/heldout/mixed.jsonl.gz", "samples": 16, "length": 256},
        "generation": {"prompts": 8},
        **HOW,
    },
    "runs": [
        *(["qwen", "mixed", "half", method] for method in ("average", "zipit")),
        *(["qwen", "mixed", "quarter", method] for method in ("mergemoe", "routed")),
        ["qwen", "mixed", "router", "msmoe"],
        ["qwen", "mixed", "outputs", "average"],
        ["qwen", "mixed", "four", "joint"],
        ["qwen", "mixed", "eight", "iterative"],
        ["qwen", "mixed", "salient", "reap"],
        ["qwen", "mixed", "each", "slim"],
        ["few", "mixed", "pairs", "select"],
        ["few", "mixed", "half", "mergemoe"],
    ],
}


def make(folder: Path) -> None:
    """Write the project: two checkpoints of one layer, params.yaml, and links to the code and the texts."""
    from memory import write_checkpoint  # beside this file; it imports torch
    from transformers import Qwen2MoeConfig

    folder.mkdir(parents=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for name, experts in (("qwen", 60), ("few", FEW)):
        write_checkpoint(folder / name, Qwen2MoeConfig(**QWEN15_MOE_A27B, num_experts=experts))
    (folder / "params.yaml").write_text(yaml.safe_dump(CHOICES, sort_keys=False))


def jobs(project: Path) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """Yield rule, wildcards and what a log says at its end, of every job that has ended."""
    for rule, parts in NAMES.items():
        folder = project / "logs" / rule
        for log in sorted(folder.rglob("*.log")) if parts else [folder.with_suffix(".log")]:
            if log.is_file() and (ran := re.findall(r"^ran in: (.*)$", log.read_text(), re.MULTILINE)):
                path = log.relative_to(folder if parts else folder.parent).with_suffix("").parts
                yield rule, wildcards(parts, path), json.loads(ran[-1])


def wildcards(parts: str, path: tuple[str, ...]) -> dict[str, str]:
    """Return {name: part} of a log's path; a subject alone has slashes."""
    names = parts.split()
    if "subject" in names:
        end = len(path) - (len(names) - 2)
        path = (path[0], "/".join(path[1:end]), *path[end:])
    return {name: part.removeprefix("layer_") for name, part in zip(names, path, strict=False)}


def compare(project: Path, params: Params) -> bool:
    """Print the table of a project; return whether all of its ratios are within [1, 2]."""
    rows: dict[str, list[tuple[float, int, int, float, float]]] = {}
    for rule, names, ran in jobs(project):
        chosen = [names[kind] for kind in CHOSEN if kind in names]
        need = job_resources.job_need(params, rule, names)
        row = need.memory / ran["peak_mb"], ran["peak_mb"], need.memory, ran["seconds"], need.flops / 1e9
        rows.setdefault(" ".join([rule, names.get("model", ""), *chosen]), []).append(row)
    print(f"{'stage':46} jobs  measured MB  estimate MB  ratio  seconds   GFLOP")
    for name, found in rows.items():
        for ratio, measured, estimate, seconds, gflop in sorted({min(found), max(found)}):
            line = f"{name:46} {len(found):4} {measured:12,} {estimate:12,} {ratio:6.2f} {seconds:8.1f} {gflop:7,.0f}"
            print(line + ("" if 1 <= ratio <= 2 else "  OUTSIDE"))
    return all(1 <= ratio <= 2 for found in rows.values() for ratio, *_ in found)


def main() -> None:
    """Make a project, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", nargs="*", type=Path, default=[Path()])
    parser.add_argument("--make", type=Path, metavar="DIR", help="write a project into this new folder")
    args = parser.parse_args()
    if args.make:
        make(args.make)
        return
    holds = True
    for project in args.projects:
        params = yaml.safe_load((project / "params.yaml").read_text())
        for model in params["model"].values():  # paths in params.yaml are below its folder
            if "revision" not in model:
                model["path"] = str(project / model["path"])
        print(project)
        holds &= compare(project, read_params(params))
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
