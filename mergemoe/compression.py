"""Compress a model that is in memory: the workflow's own functions, layer by layer, without its files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergemoe import budget, cluster, layout, request
from mergemoe.calls import Recorder
from mergemoe.capture import batches_of, run_batches
from mergemoe.compact import compact_config, module_facts
from mergemoe.errors import UserError
from mergemoe.families import parameter_of
from mergemoe.features import Activation
from mergemoe.fits import GROUPINGS
from mergemoe.forward import Forward
from mergemoe.modeling import merged_class, shrink_experts
from mergemoe.problem import Problem
from mergemoe.profile import profile
from mergemoe.progress import Progress
from mergemoe.solve import compact_experts, solve
from mergemoe.stacking import Stacking
from mergemoe.stream import ResidentModel
from mergemoe.text import heldout_rows
from mergemoe.tokens import Remembered
from mergemoe.weights import Experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECOMMENDED = {"method": "select"}


@torch.no_grad()
def compress(
    model: "PreTrainedModel",
    tokens: Tensor | Mapping[str, Tensor],
    experts: int | float = 0.5,
    method: str = "recommended",
    layers: str | Sequence[int] = "all",
    seed: int = 0,
    holdout: float = 0.125,
    batch_tokens: int = 16384,
    **options: Any,
) -> "PreTrainedModel":
    """Merge the experts of a model in place, and return it.

    On a CPU, at equal dtype, batches and threads, the weights are the workflow's, bit for bit.

    Args:
        model: a transformers model; its class becomes a subclass of what it was.
        tokens: ids [S, L], or a mapping with `input_ids` and, where there is padding, `attention_mask`, as a
            tokenizer returns with return_tensors="pt".
        experts: an int is the number kept per layer, a float in (0, 1] the share, rounded up.
        method: a method of `solve` in params.yaml.
        layers: "all", a range such as "28-47", or the numbers of the decoder layers to merge.
        seed: draws the sequences that are never fitted on.
        holdout: their share.
        batch_tokens: tokens of one forward batch.
        options: of the method, as in params.yaml.

    Raises:
        UserError: where the model's experts cannot be merged or an argument is none, before anything is computed.
    """
    if hasattr(model.config, "mergemoe"):
        raise UserError("this model is compressed already: start from the original, and choose `experts` smaller")
    merged = merged_class(request.stock_class(model))
    described = layout.of_model(model)
    settings = {**(RECOMMENDED if method == "recommended" else {"method": method}), **options}
    request.check_method(**settings)
    chosen = request.chosen(described, layers, experts, settings.get("width", 1.0))
    ids, mask = request.ids_and_mask(tokens)
    heldout = torch.tensor(heldout_rows(len(ids), holdout, seed))
    resident = ResidentModel(model)
    batches = batches_of(ids, mask, batch_tokens, model.device)
    with _as_the_workflow_runs_it(model):
        forward = Forward(resident, batches)
        progress = Progress("batches through layers", described["decoder_layers"] * len(batches))
        solved = {}
        for i, layer in forward.layers():
            entry = next((e for e in described["layers"] if e["layer"] == i and i in chosen), None)
            recorder = Recorder(model, entry) if entry else None
            rows = []
            try:
                for called in run_batches(layer, i, forward, recorder):
                    rows.append(called)
                    progress.step()
            finally:
                if recorder:
                    recorder.remove()
            if entry:
                solved[i] = _solve_layer(model, entry, chosen[i], Remembered(rows, heldout), settings)
    facts = {}
    for entry in described["layers"]:
        if entry["layer"] in solved:
            facts[entry["module"]] = _replace(model, entry, solved[entry["layer"]])
    if facts:
        for key, value in compact_config(model.config.to_dict(), described["architecture"], facts).items():
            if key in {"mergemoe", "auto_map"}:
                setattr(model.config, key, value)
        model.__class__ = merged
    return model


@contextmanager
def _as_the_workflow_runs_it(model: Any) -> Iterator[None]:
    """Let the model run without dropout and with the kernel that visits experts one by one, then be as it was."""
    training = [module for module in model.modules() if module.training]
    kernel = model.config._experts_implementation
    model.eval()
    _set_kernel(model, "eager")
    try:
        yield
    finally:
        _set_kernel(model, kernel)
        for module in training:
            module.training = True


def _set_kernel(model: Any, kernel: str | None) -> None:
    if kernel and model._can_set_experts_implementation():
        model.set_experts_implementation(kernel)


def _experts(model: Any, entry: Mapping[str, Any]) -> Experts:
    """Return the experts that a module holds, where it can be as views of its parameters."""
    module = model.get_submodule(entry["module"])
    roles = {}
    for role, facts in entry["roles"].items():
        whole = parameter_of(module, facts["parameter"], entry["experts"])
        roles[role] = Stacking(**facts["held"]).view(whole[: len(whole) - facts["spare"]], entry["experts"])
    norm = module.post_expert_norm.weight.detach().expand(entry["experts"], -1) if entry["norm"] else None
    return Experts(**roles, norm=norm)


def _solve_layer(
    model: Any, entry: Mapping[str, Any], kept: int, tokens: Remembered, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    experts, act = _experts(model, entry), Activation(**entry["activation"])
    profiled = profile(tokens, experts, act)
    usage = profiled["usage"]
    problem = Problem(experts.map(lambda matrices: matrices.float()), [], tokens, act)
    width = budget.kept_width(settings.get("width", 1.0), entry["width"])
    expert_map = cluster.group(
        GROUPINGS[settings["method"]][0], kept, problem, usage, profiled["router_similarity"], width
    )
    return solve(experts, expert_map, usage, tokens, act, **settings)[0]


def _replace(model: Any, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Put the merged experts in a module's place; return what its configuration says of it."""
    module = model.get_submodule(entry["module"])
    compact = compact_experts(_experts(model, entry), tensors)
    old = {name: parameter.detach() for name, parameter in module.named_parameters()}
    facts = module_facts(entry, len(compact), compact.up.shape[1])
    shrink_experts(module, facts)
    for role, matrices in compact.roles().items():
        where = entry["roles"][role]
        if "{}" in where["parameter"]:
            for expert, matrix in enumerate(matrices):
                module.get_parameter(where["parameter"].format(expert)).data.copy_(matrix)
            continue
        new, spare = module.get_parameter(where["parameter"]).data, where["spare"]
        Stacking(**where["held"]).view(new[: len(new) - spare], len(compact)).copy_(matrices)
        if spare:
            before = old[where["parameter"]][-spare:]
            new[len(new) - spare :] = before if before.shape[1:] == new.shape[1:] else 0
    identity = torch.arange(len(compact), len(compact) + entry["identity"])
    buffer = module.get_buffer(entry["expert_map"]["buffer"])
    buffer.copy_(torch.cat([tensors["expert_map"], identity]))
    return facts
