"""Write the compact checkpoint of one run from its solved layers, with a card that names the run's parameters.

python -m stages.assemble --cfg JSON --code DIGEST --layout LAYOUT.json --solved LAYER.safetensors ... --out FOLDER
"""

import re

from mergemoe import cards, store
from mergemoe.assemble import assemble
from stages import common


def main() -> None:
    """Read the layers, write the checkpoint whole."""
    args = common.arguments(__doc__, "layout", many=["solved"])
    layout = store.read_json(args.layout)
    provenance = common.provenance("assemble", args)
    solved = {int(re.findall(r"\d+", path)[-1]): store.read_tensors(path) for path in args.solved}
    with store.atomic(args.out) as folder:
        assemble(layout, solved, folder)
        (folder / "README.md").write_text(cards.describe(args.cfg))
        payload = {"files": {path.name: store.sha256(path) for path in sorted(folder.iterdir())}}
        store.write_json(folder / "provenance.json", payload, provenance)


if __name__ == "__main__":
    common.run(main)
