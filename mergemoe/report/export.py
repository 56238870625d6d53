"""Copy a finished run's checkpoint with its full card into a folder that can be given away."""

import json
import shutil
from pathlib import Path

from huggingface_hub import ModelCard

from mergemoe.artifacts import atomic, paths, provenance, store, writing
from mergemoe.artifacts.reading import reading
from mergemoe.errors import UserError, naming, one_line
from mergemoe.report import metrics, packed_run


def export_run(name: str, folder: Path, packed: bool = False) -> None:
    """Copy a run's checkpoint and its card, after a check of every byte of both.

    Args:
        name: of the run, such as demo/mixed/half/mergemoe.
        folder: a new one.
        packed: whether the experts are written in the bits of the run's quantization, as compressed-tensors has them.

    Raises:
        UserError: if there is no such finished run, a file of it has changed, it cannot be packed, or the folder cannot
            be made.
    """
    if name not in (finished := finished_runs()):
        raise UserError(f"{one_line(name)} is not a finished run. Finished runs: {', '.join(finished) or 'none'}")
    source, card = Path(paths.MODELS, name), Path(paths.CARDS, f"{name}.md")
    metrics.check_reported(Path(paths.RESULTS), card)
    listed = source / "provenance.json"
    with reading(card):
        made = json.loads(ModelCard.load(card).data["provenance"])["inputs"]
    if made.get(listed.as_posix()) != provenance.content_digest(listed):
        raise UserError(f"{card} has the scores of another checkpoint. Run `snakemake` to the end, then export again")
    store.check_whole(source, store.read_json(listed)["files"])
    _refuse_old(folder)
    with naming(name):
        packing = packed_run.packing_of(source) if packed else None
    try:
        with atomic.atomic(folder) as new:
            if packing is None:
                shutil.copytree(source, new, ignore=shutil.ignore_patterns(".*"))
                shutil.copyfile(card, new / "README.md")
            else:
                packing.write(card, new)
    except OSError as error:
        fact = f"{one_line(str(folder))} cannot be made ({error.strerror or one_line(str(error))})"
        raise writing.refused_write(error) or UserError(f"{fact}. Name another folder") from error


def finished_runs() -> list[str]:
    """Return the runs that have a checkpoint and a card."""
    records = Path(paths.MODELS).glob("*/*/*/*/provenance.json")
    names = sorted(str(path.parent.relative_to(paths.MODELS)) for path in records)
    return [name for name in names if Path(paths.CARDS, f"{name}.md").is_file()]


def _refuse_old(folder: Path) -> None:
    try:
        there = folder.exists()
    except OSError as error:
        raise UserError(f"{one_line(str(folder))} is no name for a folder ({error.strerror}). Name another") from None
    if there:
        raise UserError(f"{folder} exists. Name a new folder")
