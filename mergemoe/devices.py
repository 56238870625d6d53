"""How numeric code runs: device and threads."""

import torch


def set_up_torch(threads: int, device: str = "auto") -> torch.device:
    """Fix the thread count, ask for deterministic kernels, and return the device; `auto` is CUDA where there is one."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
