"""Quantized layers with random weights on random grids: what quantize would hand over."""

import torch

from mergemoe.checkpoints.expert_weights import read_experts

ROLES = ("gate", "up", "down")


def random_grids(described, entry, bits, group):
    """All experts of a layer, each at values s (q - z) drawn at random; biases stay."""
    generator = torch.Generator().manual_seed(entry["layer"])
    tensors = {"groups": torch.arange(entry["experts"]), "expert_map": torch.arange(entry["experts"])}
    for role, matrices in read_experts(described, entry["layer"]).roles().items():
        if role not in ROLES:
            tensors[role] = matrices.float()
            continue
        blocks = (*matrices.shape[:2], matrices.shape[2] // group)
        steps, zero = (
            torch.randint(0, 2**bits, shape, generator=generator) for shape in ((*blocks, group), (*blocks, 1))
        )
        scale = (torch.rand(blocks, generator=generator) * float(matrices.std()) / 2**bits).half()
        tensors[role] = ((steps - zero) * scale[..., None].float()).flatten(-2)
        tensors |= {f"{role}_scale": scale, f"{role}_zero": zero[..., 0].to(torch.uint8)}
    return tensors
