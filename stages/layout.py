"""Find where the experts of a checkpoint lie and how they compute.

python -m stages.layout --cfg '{"path": ...}' --code DIGEST --out LAYOUT.json
"""

from mergemoe import layout, store
from stages import common


def main() -> None:
    """Ask transformers once; write plain JSON."""
    args = common.arguments(__doc__)
    described = layout.describe(args.cfg["path"])
    store.write_json(args.out, described, common.provenance("layout", args))


if __name__ == "__main__":
    common.run(main)
