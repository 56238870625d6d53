"""Write the checkpoint of one run from its solved layers, with a card that names the run's parameters.

python -m stages.assemble --cfg JSON --code DIGEST --layout LAYOUT.json --modeling mergemoe/compressed/modeling.py
    --solved LAYER.safetensors ... --out FOLDER

MODELING is copied into the checkpoint with its comments, so any edit of its text counts as a change.
"""

import argparse
import re

from mergemoe.artifacts import atomic, digests, store
from mergemoe.checkpoints import cost, model_folder
from mergemoe.compressed import checkpoint_card
from mergemoe.compressed.assemble import assemble, saved_bytes
from mergemoe.moe.layout_types import Layout
from mergemoe.quantization import other_matrices
from stages.support import command


@command.stage("assemble", __doc__, "layout", "modeling", many=["solved"])
def main(args: argparse.Namespace) -> None:
    """Read the layers, write the checkpoint whole."""
    layout: Layout = store.read_json(args.layout)
    solved = {int(re.findall(r"\d+", path)[-1]): store.read_tensors(path) for path in args.solved}
    rest = args.cfg.get("quantize", {}).get("rest", other_matrices.NONE)
    with atomic.atomic(args.out) as folder:
        assemble(layout, solved, folder, rest=rest)
        stock = checkpoint_card.is_stock(path.name for path in folder.iterdir())
        card = checkpoint_card.unscored_card(args.cfg, stock, **layout.get("license", {}))
        (folder / "README.md").write_text(card, encoding="utf-8")  # `mergemoe export` replaces it
        files = digests.sha256_each(folder)
        counted = cost.count_cost(folder)
        headers, config = model_folder.read_headers(folder), model_folder.read_config(folder)
        counted["bytes"] -= saved_bytes(solved) + other_matrices.saved_bytes(headers, config, rest)
        payload = {"files": files, "cost": counted}
        store.write_json(folder / "provenance.json", payload, args.provenance)


if __name__ == "__main__":
    command.run(main)
