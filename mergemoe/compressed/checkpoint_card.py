"""The model card of a compressed checkpoint: its origin, its parameters and how to load it.

`unscored_card` goes beside the weights before anything is measured; report/model_card.py adds the scores to it.
A run's parameters are {stage: parameters} of those stages in `STAGES` that it has. A choice has a `name`, too;
`model` has a `path`, `solve` a `method`.

The stage assemble imports this module, so code that only the report needs belongs elsewhere.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.repocard_data import ModelCardData

from mergemoe.artifacts.run import Run
from mergemoe.text_table import markdown_table

Parameters = Mapping[str, Mapping[str, Any]]

STAGES = ("model", "calibrate", "capture", "cluster", "solve", "refine", "quantize")

LOADING = """\
import mergemoe

model = mergemoe.load("PATH")
"""
LOADING_WITHOUT = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH"CONSENT)
"""

STOCK = "It is a stock checkpoint, which transformers loads without extra code."
COMPACT = "The router keeps its outputs, and several of them share an expert."

REFINED = (
    "Then, in each layer, {parts} of its experts were fitted to the layer's original routed output y, by gradient "
    "descent on sum_x || sum_i t_i(x) E_i(x) - y(x) ||^2, where t_i are the routing weights (`refine`). A layer kept "
    "its weights if that did not surely lower its error on held-out tokens. "
)

QUANTIZED = "Last, the weights of all experts were rounded to {how} (`quantize`). "
AS_FLOATS = (
    "They are stored as float32 numbers with the values that this format has, so the files are larger than the size "
    "that is given. "
)
PACKED = (
    "They are stored in these bits, as the package compressed-tensors packs them, for programs that read its format "
    "`pack-quantized` with zeros."
)

_BODY = """\
# {model}, compressed

A copy of `{model}` with fewer or narrower experts in its Mixture-of-Experts layers (method `{method}`). Everything else
is unchanged. {refined}{quantized}{form} {made_by} made it:

{made}

## Load it

`PATH` is the folder of the weights.

```python
{loading}```
{or_without}```python
{loading_without}```
"""
OR_WITHOUT = """
or, if mergemoe is not installed,

"""
PACKED_BY = """\
transformers 4.57.6 with compressed-tensors 0.17.1 and accelerate reads it at 2, 4 or 8 bits; transformers 5.23
does not read the zeros.

"""


def loading_lines(folder: str, stock: bool) -> list[str]:
    """Return the lines that load a checkpoint with mergemoe, and with transformers alone."""
    consent = "" if stock else ", trust_remote_code=True"
    return [text.replace("PATH", folder).replace("CONSENT", consent) for text in (LOADING, LOADING_WITHOUT)]


def is_stock(files: Iterable[str]) -> bool:
    """Tell by the names of a checkpoint's files whether stock transformers loads it, without code of ours."""
    return "modeling_mergemoe.py" not in files


def unscored_card(parameters: Parameters, stock: bool, made_by: str | None = None, **metadata: Any) -> str:
    """Return the card of a checkpoint without scores.

    Args:
        parameters: {stage: parameters}.
        stock: whether transformers loads it without code of ours.
        made_by: what made it; None is the run of these parameters.
        metadata: more fields of ModelCardData.
    """
    model = parameters["model"]
    data = ModelCardData(
        # The Hub takes a path with a slash for an id, so the base model of a local folder is the folder's name.
        base_model=model["path"] if model.get("revision") else Path(model["path"]).name,
        base_model_relation="finetune",  # of the hub's four words, the one for changed weights
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["mergemoe", "moe", "model-compression"],
        **metadata,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_body(parameters, stock, made_by)}"


def _body(parameters: Parameters, stock: bool, made_by: str | None) -> str:
    stages = stages_of(parameters)
    made = [[stage, parameters[stage].get("name", ""), listed_parameters(parameters[stage])] for stage in stages]
    if made_by is None:
        run = Run(**{stage: parameters[stage]["name"] for stage in stages if stage in Run._fields})
        made_by = f"Run `{run.name}`"
    lines = loading_lines("PATH", stock)
    return _BODY.format(
        model=parameters["model"]["name"],
        made_by=made_by,
        method=method_of(parameters),
        made=markdown_table(["stage", "choice", "parameters"], made),
        refined=_refined(parameters["refine"]) if "refine" in parameters else "",
        quantized=_quantized(parameters["quantize"]) if "quantize" in parameters else "",
        form=STOCK if stock else COMPACT,
        loading=lines[0],
        or_without=OR_WITHOUT,
        loading_without=lines[1],
    )


def _refined(choice: Mapping[str, Any]) -> str:
    return REFINED.format(parts=", ".join(choice["parts"])) if choice["steps"] != 0 else ""


def _quantized(choice: Mapping[str, Any]) -> str:
    how = f"the nearest values of GGUF's {choice.get('format')}"
    if choice["by"] != "round":
        then = ", and fitted to each layer's original output" if choice["by"] == "descent" else ""
        how = f"{choice['bits']:g} bits by GPTQ, in groups of {choice['group']}{then}"
    if choice["rest"] != "none":
        how += f", all other matrices but routers to those of {choice['rest']}"
    return QUANTIZED.format(how=how) + AS_FLOATS


def packed_text(card: str) -> str:
    """Return the card of a quantized stock checkpoint as that of its packed copy."""
    ours = f"```python\n{LOADING}```\n{OR_WITHOUT}"
    return card.replace(AS_FLOATS + STOCK, PACKED).replace(ours, PACKED_BY)


def stages_of(parameters: Parameters) -> list[str]:
    """Return the stages of a run whose parameters its card lists."""
    return [stage for stage in STAGES if stage in parameters]


def method_of(parameters: Parameters) -> str:
    """Return the method of a run, and what was added to it."""
    return " + ".join(
        [parameters["solve"]["method"], *(stage for stage in ("refine", "quantize") if stage in parameters)]
    )


def listed_parameters(choice: Mapping[str, Any]) -> str:
    """Return the parameters of a choice on one line."""
    values = {key: _base(value) if key == "path" else value for key, value in choice.items() if key != "name"}
    spelled = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return ", ".join(f"{key}: {value}" for key, value in spelled.items() if value != "null")


def _base(path: str) -> str:
    """Return the original's path; of an absolute one only the folder's name is anyone's business."""
    return Path(path).name if Path(path).is_absolute() else path
