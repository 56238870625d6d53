"""A model compressed by the stages' library functions, called one after the other."""

import torch

import mergemoe
from mergemoe.calibration.activation_file import Reader
from mergemoe.calibration.capture import batches_of, capture
from mergemoe.calibration.profile import profile_layer
from mergemoe.calibration.token_sequences import heldout_rows
from mergemoe.checkpoints.expert_weights import read_experts, read_router
from mergemoe.compressed.assemble import assemble
from mergemoe.grouping import cluster
from mergemoe.merging.solve import solve
from mergemoe.methods import catalogue
from mergemoe.models import layout
from mergemoe.models.layered_model import LayeredModel
from mergemoe.moe.expert_forward import Activation
from mergemoe.moe.problem import Problem
from mergemoe.moe.router_rule import layer_router
from mergemoe.quantization.options import KINDS
from mergemoe.quantization.quantize import quantize as quantize_layer
from mergemoe.reconstruction.options import LAYER
from mergemoe.reconstruction.refine import refine as refine_layer

CPU = torch.device("cpu")


def drawn(rows=8):
    ids = torch.randint(3, 97, (rows, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[3, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def by_workflow(path, tokens, folder, dtype, method, width=1.0, refine=None, grouping=None, quantize=None, **options):
    """What the stages compute, called one after the other; `refine` and others are options of those, if given."""
    options = catalogue.complete(method, options | ({"width": width} if width < 1 else {}))
    routing = catalogue.routing(method, options)
    changes, grouping = routing != "preserved", {"by": catalogue.usual_grouping(method, routing), **(grouping or {})}
    by = grouping.pop("by")
    described = layout.describe_layout(path, digests=False)
    batches = batches_of(tokens["input_ids"], tokens["attention_mask"], 48, CPU)
    heldout = torch.tensor(heldout_rows(len(tokens["input_ids"]), 0.25, 7))
    files, _ = capture(LayeredModel(path, dtype, CPU), described, batches, heldout, folder / "scratch", {})
    solved = {}
    for entry in described["layers"]:
        experts, act = read_experts(described, entry["layer"]), Activation(**entry["activation"])
        with Reader(files[entry["layer"]]) as reader:
            profiled = profile_layer(reader, experts, act)
            usage, kept = profiled["usage"], 8 if by == "none" else 6 if changes else 4
            problem = Problem(experts.map(lambda m: m.float()), [], reader, act)
            groups = entry["router"]["groups"]
            how = {"router_groups": groups, **grouping}
            expert_map = cluster.group_experts(by, kept, problem, profiled, entry["width"], **how).expert_map
            router = layer_router(entry, read_router(described, entry["layer"])) if changes else None
            solved[entry["layer"]], _ = solve(
                experts, expert_map, usage, reader, act, router=router, method=method, **options
            )
            if refine:
                given = {name: refine.get(name, option.default) for name, option in LAYER.items()}
                scratch, start = folder / "refine", solved[entry["layer"]]
                solved[entry["layer"]], record = refine_layer(
                    experts, start, reader, act, router=router, scratch=scratch / str(entry["layer"]), **given
                )
                assert record["steps"] == refine["steps"]
            if quantize:
                given = {name: quantize.get(name, option.default) for name, option in KINDS[quantize["by"]].items()}
                start = solved[entry["layer"]]
                solved[entry["layer"]], _ = quantize_layer(
                    experts, start, reader, act, router=router, by=quantize["by"], **given
                )
    assemble(described, solved, folder / "workflow", rest=(quantize or {}).get("rest", "none"))
    return mergemoe.load(folder / "workflow", "cpu")
