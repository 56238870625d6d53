"""The plug-in of vLLM: an entry point of `vllm.general_plugins`. vLLM calls `register` in each of its processes."""

PREFIX = "MergeMoe"  # of the classes that config.json of a compact checkpoint names


def register() -> None:
    """Name to vLLM a class for a compressed model of each class that it has; none is imported before it is used."""
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    for name in sorted(ModelRegistry.get_supported_archs()):
        if not name.startswith(PREFIX):
            ModelRegistry.register_model(f"{PREFIX}{name}", f"mergemoe.serving.vllm_models:{PREFIX}{name}")
