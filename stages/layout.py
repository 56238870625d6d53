"""Find where the experts of a checkpoint lie and how they compute.

python -m stages.layout --cfg '{"path": ..., "revision": ...}' --code DIGEST --out LAYOUT.json
"""

import argparse

from mergemoe.artifacts import store
from mergemoe.checkpoints import finite, hub_record, model_folder
from mergemoe.models import layout, supported
from stages.support import command


@command.stage("layout", __doc__, hashed=False)
def main(args: argparse.Namespace) -> None:
    """Read every weight once, ask transformers once, write plain JSON."""
    folder = model_folder.locate_checkpoint(args.cfg["path"], args.cfg.get("revision"))
    supported.check_architecture(folder)
    described = layout.describe_layout(args.cfg["path"], args.cfg.get("revision"))
    finite.check_finite(folder)
    hub_record.check_fetch_record(args.cfg["path"], args.cfg.get("revision"), described["files"])
    store.write_json(args.out, described, args.provenance)


if __name__ == "__main__":
    command.run(main)
