"""Every path below results/ and logs/, as a pattern of wildcards such as `{model}`.

run.py says what a run is, and how its choices become parts of paths. `fitted` is a solve, or a solve and a refine; a
solution is that, or that and a quantization. A subject is scored: `full`, the original model, or a run by its name.
"""

from pathlib import Path

from mergemoe.artifacts.addresses import RESULTS

LOGS = "logs"

CONVERTED = "results/convert/{model}"  # a folder; its provenance.json stands for it
LAYOUT = "results/layout/{model}.json"
TOKENS = "results/calibrate/{model}/{calibrate}/tokens.safetensors"
MANIFEST = "results/calibrate/{model}/{calibrate}/tokens.json"
CAPTURE = "results/capture/{model}/{calibrate}"  # a folder with one file per layer
CAPTURED_LAYER = "results/capture/{model}/{calibrate}/layer_{layer}.h5"
PROFILE = "results/profile/{model}/{calibrate}/layer_{layer}.json"
CURVE = "results/curve/{model}/{calibrate}/{cluster}/layer_{layer}.json"
BUDGET = "results/budget/{model}/{calibrate}/{cluster}.json"
CLUSTER = "results/cluster/{model}/{calibrate}/{cluster}/layer_{layer}.json"
SOLVED = "results/solve/{model}/{calibrate}/{cluster}/{solve}/layer_{layer}.safetensors"
SOLVE_RECORD = "results/solve/{model}/{calibrate}/{cluster}/{solve}/layer_{layer}.json"
REFINED = "results/refine/{model}/{calibrate}/{cluster}/{solve}/{refine}/layer_{layer}.safetensors"
REFINE_RECORD = "results/refine/{model}/{calibrate}/{cluster}/{solve}/{refine}/layer_{layer}.json"
QUANTIZED = "results/quantize/{model}/{calibrate}/{cluster}/{fitted}/{quantize}/layer_{layer}.safetensors"
QUANTIZE_RECORD = "results/quantize/{model}/{calibrate}/{cluster}/{fitted}/{quantize}/layer_{layer}.json"
MODELS = "results/models"
MODEL = "results/models/{model}/{calibrate}/{cluster}/{solution}"
SUBJECT_MODEL = "results/models/{model}/{subject}"  # the same folder
REFERENCE = "results/scores/{model}/full/reference"
SCORE = "results/scores/{model}/{subject}/{task}.json"
FIDELITY = "results/scores/{model}/{subject}/fidelity.json"
GENERATION = "results/scores/{model}/{subject}/generation.json"
METRICS = "results/metrics.json"
QUALITY, ERRORS = "results/quality.csv", "results/errors.csv"
PAGE, PART = "results/report/index.html", "results/report/{part}.html"
CARDS, CARD = "results/cards", "results/cards/{model}/{subject}.md"
REPORTED = "results/report/provenance.json"
PARTIAL_PAGE = "scratch/report_partial/index.html"

# What each wildcard matches.
_FITTED = r"\w+(?:\+\w+)?"
_SOLUTION = rf"{_FITTED}(?:@\w+)?"
PATTERNS = {
    **dict.fromkeys(("model", "calibrate", "cluster", "solve", "refine", "quantize"), r"\w+"),
    "layer": r"\d{3}",
    "fitted": _FITTED,
    "solution": _SOLUTION,
    "subject": rf"full|\w+/\w+/{_SOLUTION}",
    "task": r"(?!(?:fidelity|generation)\.json$)\w[\w.-]*",
}


def below(results: Path, pattern: str, **wildcards: str) -> Path:
    """Return the path of a pattern in the folder `results`, wherever that lies."""
    return results / pattern.removeprefix(f"{RESULTS}/").format(**wildcards)


def provenance_of(folder: str) -> str:
    """Return the file that holds the provenance of a folder's files, of the pattern of the folder."""
    return f"{folder}/provenance.json"


def layer_name(number: int) -> str:
    """Return a layer's number as the wildcard `layer` has it: three digits."""
    return f"{number:03d}"
