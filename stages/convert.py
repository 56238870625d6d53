"""Write a plain checkpoint: of a quantized one, of one that transformers has no class for, or the average of several.

python -m stages.convert --cfg '{"path": ..., "revision": ..., "dequantize": ...}' --code DIGEST --out FOLDER
"""

import argparse
from pathlib import Path
from typing import Any

from mergemoe.artifacts import atomic, store
from mergemoe.artifacts import digests as payloads
from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.hub import hub_record
from mergemoe.models import deepseek
from mergemoe.models.averaging import averages
from mergemoe.models.averaging.average import average_checkpoints
from mergemoe.models.dequantize import dequantize_checkpoint
from mergemoe.progress import track
from stages.support import command


@command.stage("convert", __doc__, hashed=False)
def main(args: argparse.Namespace) -> None:
    """Write the folder whole, with the sha256 of its files and of the original's, or of each original's."""
    with atomic.atomic(args.out) as folder:
        if average := args.cfg.get("average"):
            folders = [Path(path) for path in average["paths"]]
            digests: dict[str, Any] = {str(original): _digests(original) for original in folders}
            shares = averages.weights(average["by"], len(folders), average["alpha"])
            average_checkpoints(folders, shares, folder)
        else:
            original = model_folder.locate_checkpoint(args.cfg["path"], args.cfg.get("revision"))
            digests = _digests(original)
            hub_record.check_fetch_record(args.cfg["path"], args.cfg.get("revision"), digests)
            convert = dequantize_checkpoint if args.cfg["dequantize"] else deepseek.convert_deepseek
            convert(original, folder)
        payload = {"files": payloads.sha256_each(folder), "original": digests}
        store.write_json(folder / "provenance.json", payload, args.provenance)


def _digests(original: Path) -> dict[str, str]:
    """Return the sha256 of each file of a checkpoint."""
    files = track(model_folder.checkpoint_files(original), f"sha256 of the files of {original}")
    return {path.relative_to(original).as_posix(): payloads.sha256(path) for path in files}


if __name__ == "__main__":
    command.run(main)
