"""Find where the experts of a checkpoint lie and how they compute.

python -m stages.layout --cfg '{"path": ..., "revision": ...}' --code DIGEST --out LAYOUT.json
"""

from mergemoe import checkpoint, faults, finite, layout, records, store
from stages import common


def main() -> None:
    """Look at every weight once, ask transformers once; write plain JSON."""
    args = common.arguments(__doc__)
    folder = checkpoint.locate(args.cfg["path"], args.cfg.get("revision"))
    faults.check_code(folder)
    described = layout.describe(args.cfg["path"], args.cfg.get("revision"))
    finite.check_finite(folder)
    records.check(args.cfg["path"], args.cfg.get("revision"), described["files"])
    store.write_json(args.out, described, common.made_by("layout", args))


if __name__ == "__main__":
    common.run(main)
