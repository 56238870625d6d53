"""Find where the experts of a checkpoint lie and how they compute.

python -m stages.layout --cfg '{"path": ..., "revision": ...}' --code DIGEST --out LAYOUT.json
"""

import argparse
from pathlib import Path

from mergemoe.artifacts import provenance, store
from mergemoe.checkpoints import cost, finite, license, model_folder
from mergemoe.checkpoints.hub import hub_record
from mergemoe.models import layout, supported, tied_weights
from stages.support import command

CONVERTED = ("results", "convert")  # artifacts/paths.py would make this job run again for every path that is added


@command.stage("layout", __doc__, hashed=False)
def main(args: argparse.Namespace) -> None:
    """Compare a plain copy with its record, read every weight, ask transformers once, write plain JSON."""
    folder = model_folder.locate_checkpoint(args.cfg["path"], args.cfg.get("revision"))
    inputs = {}
    if Path(args.cfg["path"]).parts[:2] == CONVERTED:
        copied = f"{args.cfg['path']}/provenance.json"
        command.check_inputs([copied])
        store.check_whole(folder, store.read_json(copied)["files"])
        inputs[copied] = provenance.content_digest(copied)
    supported.check_architecture(folder)
    described = layout.describe_layout(args.cfg["path"], args.cfg.get("revision"))
    finite.check_finite(folder)
    tied_weights.check_stored_ties(folder)
    hub_record.check_fetch_record(args.cfg["path"], args.cfg.get("revision"), described["files"])
    if stated := license.stated_license(folder):
        described["license"] = stated
    store.write_json(args.out, {**described, "cost": cost.count_cost(folder)}, {**args.provenance, "inputs": inputs})


if __name__ == "__main__":
    command.run(main)
