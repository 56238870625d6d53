"""A finished study in small: every artifact that the report reads, with invented numbers and real file formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mergemoe.artifacts import paths
from mergemoe.artifacts.run import Run
from mergemoe.artifacts.store import write_json
from mergemoe.checkpoints.cost import count_cost

LAYERS, EXPERTS, WIDTH, HIDDEN = 2, 8, 6, 4
RUNS = [
    Run("demo", "mixed", "half", "average"),
    Run("demo", "mixed", "half", "mergemoe"),
    Run("demo", "mixed", "half", "mergemoe", "tuned"),
    Run("demo", "mixed", "quarter", "mergemoe"),
]
TASKS = ["blimp", "fidelity"]
CFG = {"runs": [run.listed for run in RUNS], "tasks": TASKS}
GENERATED = {**CFG, "tasks": [*TASKS, "generation"]}
PROMPTS = ["Once upon a time", "x" * 500]
KEPT = {"half": 4, "quarter": 2}
KL = {"half/average": 1.0451, "half/mergemoe": 0.2503, "half/mergemoe+tuned": 0.0702, "quarter/mergemoe": 0.8342}
STEPS = 50


def build(results: Path) -> Path:
    """Write the study below `results`; return it."""
    demo = checkpoint(results.parent / "demo-moe", EXPERTS)
    entry = {"experts": EXPERTS, "width": WIDTH, "top_k": 2}
    write(
        results / "layout/demo.json",
        {
            "path": str(demo),
            "model_type": "qwen3_moe",
            "layers": [{"layer": i, **entry} for i in range(LAYERS)],
            "cost": count_cost(demo),
        },
    )
    for layer in range(LAYERS):
        figures = {
            "tokens": 1792,
            "usage": [100 * (e + layer) for e in range(EXPERTS)],
            "saliency": [0.1 * e for e in range(EXPERTS)],
        }
        write(results / f"profile/demo/mixed/layer_{layer:03d}.json", {"layer": layer, **figures})
    score(results / "scores/demo/full", {"acc": 0.7012, "acc_stderr": 0.0132}, {"perplexity": 81.93})
    generated(results / "scores/demo/full", "full")
    for cluster, kept in KEPT.items():
        for layer in range(LAYERS):
            write(results / f"cluster/demo/mixed/{cluster}/layer_{layer:03d}.json", grouping(layer, kept))
    for run in RUNS:
        _run(results, run)
    return results


def _run(results: Path, run: Run) -> None:
    cluster, method, kl = run.cluster, run.solve, KL[f"{run.cluster}/{run.solution}"]
    folder = checkpoint(results / "models" / run.name, KEPT[cluster])
    params = {
        "model": {"name": run.model, "path": "data/demo-moe"},
        "calibrate": {"name": run.calibrate, "samples": 64, "revision": None},
        "capture": {"dtype": "float32"},
        "cluster": {"name": cluster, "by": "weights"},
        "solve": {"name": method, "method": method},
        **(
            {"refine": {"name": run.refine, "by": "layer", "steps": STEPS, "parts": ["gate", "up", "down"]}}
            if run.refine
            else {}
        ),
    }
    made = {"files": {"modeling_mergemoe.py": "0" * 64}, "cost": count_cost(folder)}
    write(folder / "provenance.json", made, stage="assemble", params=params)
    for layer in range(LAYERS):
        told = refinement(layer, KEPT[cluster], kl) if run.refine else _solution(layer, KEPT[cluster], method, kl)
        write(results / layer_file(run, layer), told)
    score(
        results / "scores" / run.name,
        {"acc": 0.71 - kl / 10, "acc_stderr": 0.0139},
        {"perplexity": 81.9 * (1 + kl), "kl": kl, "kl_stderr": kl / 40, "top1": 0.9 - kl / 4, "output_error": kl / 2},
    )
    generated(results / "scores" / run.name, f"{cluster}/{run.solution}")


def layer_file(run: Run, layer: int) -> str:
    """Return the record below results/ that has the errors of a run's layer."""
    pattern = paths.REFINE_RECORD if run.refine else paths.SOLVE_RECORD
    return pattern.removeprefix("results/").format(**run.choices, layer=paths.layer_name(layer))


def _errors(layer: int, kept: int, kl: float) -> dict[str, float | None]:
    return {"fit": kl * (1 + layer) / 9, "heldout": kl * (1.2 + layer) / 8 if kept == KEPT["half"] else None}


def _solution(layer: int, kept: int, method: str, kl: float) -> dict[str, Any]:
    return {
        "layer": layer,
        "method": method,
        "experts": EXPERTS,
        "kept": kept,
        "output_error": _errors(layer, kept, kl),
        "groups": fits(layer, kept) if method == "mergemoe" else [],
    }


def refinement(layer: int, kept: int, kl: float) -> dict[str, Any]:
    """Return what a refine says of a layer: its error falls for 40 steps, and rises in the last 10."""
    after = _errors(layer, kept, kl)
    history = [{"step": step, "fit": 1 / (1 + step), "heldout": kl * (41 - step)} for step in range(0, STEPS, 10)]
    history.append({"step": STEPS, "fit": 1 / (1 + STEPS), "heldout": 2 * kl})
    return {
        "layer": layer,
        "experts": EXPERTS,
        "kept": kept,
        "start_error": {"fit": 1.0, "heldout": 41 * kl},
        "output_error": after,
        "steps": STEPS,
        "best_step": 40,
        "history": history,
    }


def grouping(layer: int, kept: int) -> dict[str, Any]:
    """Return what a clustering says of a layer: every `kept`-th expert is in one group; the last layer prunes one."""
    pruned = [EXPERTS - 1] if layer == LAYERS - 1 else []
    expert_map = [-1 if expert in pruned else expert % kept for expert in range(EXPERTS)]
    members = [[e for e, g in enumerate(expert_map) if g == group] for group in range(kept)]
    return {
        "layer": layer,
        "kept": kept,
        "expert_map": expert_map,
        "pruned": pruned,
        "fit_tokens": 1568,
        "needed_tokens": {"group": WIDTH, "joint": kept * WIDTH},
        "groups": [
            {
                "members": own,
                "centre": max(own),  # usage rises with the number
                "size": len(own),
                "share": sum(own) / sum(range(EXPERTS)),
                "routed_tokens": 3 + 100 * group,
            }
            for group, own in enumerate(members)
        ],
    }


def fits(layer: int, kept: int) -> list[dict[str, Any]]:
    """Return what a solve says of the groups of a layer."""
    return [
        {
            "group": group,
            "tokens": 1568 - group,
            "unknowns": WIDTH,
            "rank": WIDTH - group % 2,
            "condition": 10.0 * layer,
        }
        for group in range(kept)
    ]


def checkpoint(folder: Path, experts: int) -> Path:
    """Write a folder with the tensors that a count of costs needs."""
    folder.mkdir(parents=True)
    tensors = {"model.embed_tokens.weight": np.ones((10, HIDDEN), np.float32)}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    for layer in range(LAYERS):
        for expert in range(experts):
            key = f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
            tensors[key] = np.ones((HIDDEN, WIDTH), np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_experts_per_tok": 2}))
    return folder


def score(folder: Path, blimp: dict[str, float], fidelity: dict[str, float]) -> None:
    """Write the scores of one model."""
    write(folder / "blimp.json", {"task": "blimp", "version": "2.0", "samples": 1200, "scores": blimp})
    write(folder / "fidelity.json", {"task": "fidelity", "samples": 16320, "scores": fidelity})


def generated(folder: Path, text: str) -> None:
    """Write the continuations of one model, all of which begin with `text`."""
    numbers = {"loops": len(text) / 100, "loops_stderr": 0.02, "distinct2": 0.5, "length": 48.0, "perplexity": 5.25}
    texts = [{"prompt": prompt, "text": f"{text} <b>of</b> {place}"} for place, prompt in enumerate(PROMPTS)]
    write(folder / "generation.json", {"task": "generation", "samples": 16, "scores": numbers, "continuations": texts})


def write(path: Path, payload: dict[str, Any], stage: str = "test", params: Any = None) -> None:
    """Write one artifact."""
    write_json(path, payload, {"stage": stage, "params": params, "inputs": {}, "code": "0" * 64})
