"""A checkpoint with a layer that predicts further tokens, as deepseek_v3 and glm4_moe have it."""

import json
import re

import architectures
from safetensors.torch import load_file, save_file

COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")


def tensors_of(folder):
    return {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}


def with_predicting_layer(name, folder, trunk=8, predicting=8, dtype=None):
    """Save a model whose last layer is stored once more, for a further token."""
    architectures.save(name, folder)
    config, tensors = json.loads((folder / "config.json").read_text()), tensors_of(folder)
    own = config["num_hidden_layers"]
    start, after = f"model.layers.{own - 1}.", f"model.layers.{own}."
    tensors |= {after + key.removeprefix(start): t.clone() for key, t in tensors.items() if key.startswith(start)}
    for key in list(tensors):
        count = predicting if key.startswith(after) else trunk
        if (found := re.search(r"\.experts\.(\d+)\.", key)) and int(found[1]) >= count:
            del tensors[key]
        elif ".mlp.gate." in key:
            tensors[key] = tensors[key][:count].clone()
        elif dtype and key.startswith(after) and ".experts." in key:
            tensors[key] = tensors[key].to(dtype)
    config |= {key: trunk for key in COUNTS if key in config}
    config |= {"num_nextn_predict_layers": 1, "n_group": 1, "topk_group": 1}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
