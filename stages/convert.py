"""Write a plain copy of a checkpoint that is quantized, or of a form that transformers has no class for.

python -m stages.convert --cfg '{"path": ..., "revision": ..., "dequantize": ...}' --code DIGEST --out FOLDER
"""

import argparse

from mergemoe.artifacts import atomic, store
from mergemoe.artifacts import digests as payloads
from mergemoe.checkpoints import model_folder
from mergemoe.checkpoints.hub import hub_record
from mergemoe.models import deepseek
from mergemoe.models.dequantize import dequantize_checkpoint
from mergemoe.progress import track
from stages.support import command


@command.stage("convert", __doc__, hashed=False)
def main(args: argparse.Namespace) -> None:
    """Write the folder whole, with the sha256 of its files and of the original's."""
    original = model_folder.locate_checkpoint(args.cfg["path"], args.cfg.get("revision"))
    files = track(model_folder.checkpoint_files(original), "sha256 of the original's files")
    digests = {path.relative_to(original).as_posix(): payloads.sha256(path) for path in files}
    hub_record.check_fetch_record(args.cfg["path"], args.cfg.get("revision"), digests)
    convert = dequantize_checkpoint if args.cfg["dequantize"] else deepseek.convert_deepseek
    with atomic.atomic(args.out) as folder:
        convert(original, folder)
        payload = {
            "files": payloads.sha256_each(folder),
            "original": digests,
        }
        store.write_json(folder / "provenance.json", payload, args.provenance)


if __name__ == "__main__":
    command.run(main)
