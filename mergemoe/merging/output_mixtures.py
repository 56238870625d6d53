"""Random mixtures of a layer's outputs, for choosing a ridge in less time.

||W P - Y||^2 is a sum over the H outputs. If the entries of S [s, H] are independent signs over sqrt(s), ||S v||^2 is
||v||^2 in expectation (Achlioptas, 2003), and S W is the solution for the outputs S Y. So the least squares of s
mixtures tell how the error changes with the ridge, in s / H of the time.
"""

import torch
from torch import Tensor

from mergemoe.moe.layer_sizes import MIXTURES


def mixtures(outputs: int, device: torch.device | str) -> Tensor | None:
    """Return S [MIXTURES, H] in float64, the same each time; None if there are no more outputs than that."""
    if outputs <= MIXTURES:
        return None
    signs = torch.randint(2, (MIXTURES, outputs), generator=torch.Generator().manual_seed(0))
    return ((2 * signs - 1).double() / MIXTURES**0.5).to(device)
