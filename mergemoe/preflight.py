"""Checks before the first job: what can be known to fail later is said now, in one message."""

import re
from pathlib import Path

from mergemoe import budget, checkpoint, text
from mergemoe.errors import UserError
from mergemoe.params import Params


def check(params: Params) -> None:
    """Check models, groupings, files; reads JSON headers alone, so every parse of the Snakefile may call it.

    Raises:
        UserError: with the key of params.yaml to change.
    """
    layers = {model: _experts(model, params) for model in dict.fromkeys(run.model for run in params.all_runs())}
    for model, cluster in dict.fromkeys((run.model, run.cluster) for run in params.all_runs()):
        chosen = params.cluster[cluster]
        first, last = chosen.bounds()
        inside = {layer: count for layer, count in layers[model].items() if first <= layer <= last}
        if not inside:
            raise UserError(
                f"cluster.{cluster}.layers: {chosen.layers} holds no MoE layer of {model}; "
                f"it has {', '.join(map(str, layers[model]))}"
            )
        for layer, count in inside.items():
            try:
                budget.kept_experts(chosen.experts, count)
            except UserError as error:
                raise UserError(f"cluster.{cluster}, layer {layer} of {model}: {error}") from None
    texts = {f"calibrate.{run.calibrate}": params.calibrate[run.calibrate] for run in params.all_runs()}
    for name, wanted in {**texts, "evaluate.heldout": params.evaluate.heldout}.items():
        if wanted.source is not None and not Path(wanted.source).is_file():
            raise UserError(f"{name}.source: {wanted.source}: no such file")
    for name, task in params.evaluate.tasks.items():
        if task.include is not None and not Path(task.include).is_dir():
            raise UserError(f"evaluate.tasks.{name}.include: {task.include} is no folder")
        if task.include is not None and not _defines(Path(task.include), name):
            raise UserError(
                f"evaluate.tasks.{name}: no *.yaml file in {task.include} says `task: {name}` or `group: {name}`"
            )


def _defines(folder: Path, task: str) -> bool:
    line = re.compile(rf"^(task|group): *[\"']?{task}[\"']? *$", re.MULTILINE)
    return any(line.search(path.read_text()) for path in folder.rglob("*.yaml"))


def _experts(model: str, params: Params) -> dict[int, int]:
    path = params.model[model].path
    quantized = checkpoint.read_config(path).get("quantization_config") if checkpoint.shards(path) else None
    if quantized is not None:
        raise UserError(f"model.{model}: {path} is quantized ({quantized.get('quant_method')}): not supported yet")
    return checkpoint.count_experts(path)


def check_texts(params: Params) -> None:
    """Draw every local text once with each model's tokenizer.

    Raises:
        UserError: where a text is too short, or a row lacks its field.
    """
    from transformers import AutoTokenizer  # slow to import: once per run, not once per parse

    for model, calibrate in sorted({(run.model, run.calibrate) for run in params.all_runs()}):
        tokenizer = AutoTokenizer.from_pretrained(params.model[model].path)
        chosen = params.calibrate[calibrate]
        text.heldout_rows(chosen.samples, chosen.holdout, chosen.seed)
        for name, wanted in {f"calibrate.{calibrate}": chosen, "evaluate.heldout": params.evaluate.heldout}.items():
            if wanted.source:
                try:
                    text.from_source(tokenizer, **wanted.model_dump(exclude={"holdout"}))
                except UserError as error:
                    raise UserError(f"{name}: {error}") from None
