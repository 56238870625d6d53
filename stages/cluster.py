"""Group the experts of one layer.

python -m stages.cluster --cfg JSON --code DIGEST --layer N --layout LAYOUT.json --capture LAYER.h5
    --profile LAYER.json --out LAYER.json

The configuration's `experts` is the number kept or a share; null leaves the layer as it is.
"""

from mergemoe import budget, cluster, runtime, store
from mergemoe.activations import Reader
from mergemoe.weights import read_experts
from stages import common


def main() -> None:
    """Read experts and usage, group, write the groups with their figures."""
    args = common.arguments(__doc__, "layout", "capture", "profile", also=["layer"])
    runtime.start(args.cfg["threads"], args.device)
    layout, layer = store.read_json(args.layout), int(args.layer)
    usage = store.read_json(args.profile, layer)["usage"]
    experts = read_experts(layout, layer)
    kept = budget.kept_experts(args.cfg["experts"], len(experts))
    expert_map, centres = cluster.by_weights(experts, usage, kept)
    with Reader(args.capture, layer) as reader:
        groups = cluster.describe(expert_map, centres, usage, reader)
    needs = budget.needed_tokens(kept, experts.up.shape[1])
    payload = {"layer": layer, "by": args.cfg["by"], **groups, "needed_tokens": needs}
    store.write_json(args.out, payload, common.provenance("cluster", args))


if __name__ == "__main__":
    common.run(main)
