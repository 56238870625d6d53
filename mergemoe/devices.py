"""Set the device and the number of threads for numeric code."""

import torch


def set_up_torch(threads: int, device: str = "auto") -> torch.device:
    """Set the number of threads, ask for deterministic kernels, return the device; `auto` prefers CUDA to the CPU."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
