"""The stages of the workflow, one row each, in the order of the data.

A new stage is a row here, a rule in the Snakefile and a module in stages/, all with the same name. Paths, expected
provenance, dvc.yaml, the list of jobs, memory and GPUs, and missing results are all read from this table.
"""

from mergemoe.artifacts import paths
from mergemoe.artifacts.stage import Holds, Stage

_HOW = ("dtype", "batch_tokens", "threads")  # keys of section evaluate: how the models run
_DRAWN = ("layout", "capture")  # what the stages of one layer read
_SCORES = ("fidelity", "generate", "evaluate")
_ROWS = (
    Stage(
        name="convert",
        output=paths.CONVERTED,
        record=paths.provenance_of(paths.CONVERTED),
        dvc="layout",
        sections=("model",),
        checkpoint="whole",
        optional=True,
        holds=Holds(base=440),
    ),
    Stage(
        name="layout",
        output=paths.LAYOUT,
        dvc="layout",
        reads=("convert",),
        sections=("model",),
        parameters="plain_choice",
        checkpoint="whole",
        holds=Holds(base=400),
    ),
    Stage(
        name="calibrate",
        output=paths.TOKENS,
        record=paths.MANIFEST,
        dvc="calibrate",
        reads=("layout",),
        sections=("calibrate",),
        holds=Holds(base=260),
    ),
    Stage(
        name="capture",
        output=paths.CAPTURE,
        dvc="capture",
        reads=("layout", "calibrate"),
        sections=("capture",),
        threads="capture",
        checkpoint="whole",
        device="gpu",
        holds=Holds(base=460),
    ),
    Stage(
        name="profile",
        output=paths.PROFILE,
        dvc="profile",
        reads=_DRAWN,
        sections=("profile",),
        threads="profile",
        checkpoint="layer",
        device="any",
        holds=Holds(base=340),
    ),
    Stage(
        name="curve",
        output=paths.CURVE,
        dvc="cluster",
        reads=(*_DRAWN, "profile"),
        sections=("cluster",),
        parameters="curve_choice",
        threads="cluster",
        checkpoint="layer",
        device="any",
        optional=True,
        holds=Holds(base=440),
    ),
    Stage(
        name="budget",
        output=paths.BUDGET,
        dvc="cluster",
        reads=("layout", "profile", "curve"),
        sections=("cluster",),
        parameters="budget_choice",
        optional=True,
        holds=Holds(base=260),
    ),
    Stage(
        name="cluster",
        output=paths.CLUSTER,
        dvc="cluster",
        reads=(*_DRAWN, "profile", "budget"),
        sections=("cluster",),
        parameters="cluster_choice",
        threads="cluster",
        checkpoint="layer",
        device="any",
        holds=Holds(base=350),
    ),
    Stage(
        name="solve",
        output=paths.SOLVED,
        record=paths.SOLVE_RECORD,
        dvc="solve",
        reads=(*_DRAWN, "profile", "cluster"),
        sections=("solve",),
        threads="solve",
        checkpoint="layer",
        device="gpu",
        method=True,
        holds=Holds(base=375),
    ),
    Stage(
        name="refine",
        output=paths.REFINED,
        record=paths.REFINE_RECORD,
        dvc="refine",
        reads=(*_DRAWN, "solve"),
        sections=("refine",),
        threads="refine",
        checkpoint="layer",
        device="gpu",
        optional=True,
        holds=Holds(base=375),
    ),
    Stage(
        name="quantize",
        output=paths.QUANTIZED,
        record=paths.QUANTIZE_RECORD,
        dvc="quantize",
        reads=(*_DRAWN, "solve", "refine"),
        sections=("quantize",),
        parameters="layer_quantize_choice",
        threads="quantize",
        checkpoint="layer",
        device="gpu",
        optional=True,
        holds=Holds(base=375),
    ),
    Stage(
        name="assemble",
        output=paths.MODEL,
        record=paths.provenance_of(paths.MODEL),
        dvc="assemble",
        reads=("layout", "solve", "refine", "quantize"),
        sections=("model", "calibrate", "capture", "cluster", "solve", "refine", "quantize"),
        parameters="run_choice",
        checkpoint="whole",
        holds=Holds(base=400),
    ),
    Stage(
        name="reference",
        output=paths.REFERENCE,
        dvc="evaluate",
        reads=("layout",),
        sections=("evaluate",),
        keys=("heldout", *_HOW),
        threads="evaluate",
        checkpoint="whole",
        device="gpu",
        holds=Holds(base=460),
    ),
    Stage(
        name="fidelity",
        output=paths.FIDELITY,
        dvc="evaluate",
        reads=("layout", "assemble", "reference"),
        sections=("evaluate",),
        keys=_HOW,
        threads="evaluate",
        checkpoint="whole",
        device="gpu",
        holds=Holds(base=480),
    ),
    Stage(
        name="generate",
        output=paths.GENERATION,
        dvc="evaluate",
        reads=("layout", "assemble", "reference"),
        sections=("evaluate",),
        keys=("generation", *_HOW),
        threads="evaluate",
        checkpoint="whole",
        device="gpu",
        optional=True,
        holds=Holds(base=470),
    ),
    Stage(
        name="evaluate",
        output=paths.SCORE,
        dvc="evaluate",
        reads=("layout", "assemble"),
        sections=("evaluate",),
        parameters="task_choice",
        threads="evaluate",
        checkpoint="whole",
        device="gpu",
        holds=Holds(base=560),
    ),
    Stage(
        name="report",
        output=paths.REPORTED,
        dvc="report",
        reads=("layout", "profile", "cluster", "solve", "refine", "quantize", "assemble", *_SCORES),
        sections=("evaluate",),
        parameters="report_choice",
        holds=Holds(base=75),
    ),
    Stage(
        name="report_partial",
        output=paths.PARTIAL_PAGE,
        sections=("evaluate",),
        parameters="report_choice",
        holds=Holds(base=75),
    ),
)
STAGES = {stage.name: stage for stage in _ROWS}


def recorded_stages() -> list[Stage]:
    """Return the stages whose outputs are recorded, in the order of the data."""
    return [stage for stage in STAGES.values() if stage.dvc]


def dvc_stages() -> list[str]:
    """Return the stages of dvc.yaml, in the order of the data."""
    return list(dict.fromkeys(stage.dvc for stage in STAGES.values() if stage.dvc))


def stages_of(dvc: str) -> list[Stage]:
    """Return the stages that one DVC stage runs."""
    return [stage for stage in STAGES.values() if stage.dvc == dvc]
