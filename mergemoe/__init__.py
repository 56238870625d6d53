"""MergeMoE: compress Mixture-of-Experts language models by merging experts (arXiv 2510.14436).

    import mergemoe
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("data/demo-moe")
    texts = ["Text of the kind that the model will read.", "The more, the better."]
    tokens = tokenizer(texts, return_tensors="pt", padding=True)
    model = mergemoe.load("data/demo-moe")
    mergemoe.compress(model, tokens, experts=0.5, ridge=0.1, holdout=0.0)
    mergemoe.save(model, "demo-half")
    model = mergemoe.load("demo-half")

Names load on first use: importing the package imports neither torch nor transformers. Their types are in __init__.pyi.
"""

import importlib
from typing import Any

_HOME = {
    "compress": "mergemoe.compressed.compress",
    "load": "mergemoe.compressed.loading",
    "save": "mergemoe.compressed.saving",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'mergemoe' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
