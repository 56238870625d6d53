"""MergeMoE: compress Mixture-of-Experts language models by merging experts (arXiv 2510.14436).

Names load on first use: importing the package pulls in neither torch nor transformers.
"""

import importlib
from typing import Any

_HOME = {
    "load": "mergemoe.compressed.loading",
    "save": "mergemoe.compressed.loading",
    "compress": "mergemoe.compressed.compress",
}


def __getattr__(name: str) -> Any:
    """Import the module a public name lives in, when the name is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'mergemoe' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
