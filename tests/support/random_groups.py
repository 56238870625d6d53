"""Groups of a layer drawn at random, with random weights."""

import torch

from mergemoe.checkpoints.expert_weights import read_experts


def random_groups(described, entry):
    """Groups drawn at random, with random weights: what solve would hand over. Layers differ in M."""
    generator = torch.Generator().manual_seed(entry["layer"])
    kept = 3 + entry["layer"] % 2
    expert_map = torch.cat(
        [torch.arange(kept), torch.randint(0, kept - 1, (entry["experts"] - kept,), generator=generator)]
    )
    groups = [g for g in range(kept) if int((expert_map == g).sum()) > 1]
    tensors = {"groups": torch.tensor(groups), "expert_map": expert_map}
    for role, matrices in read_experts(described, entry["layer"]).roles().items():
        shape = (len(groups), *matrices.shape[1:])
        tensors[role] = (torch.randn(shape, generator=generator) * matrices.std()).to(matrices.dtype)
    return tensors
