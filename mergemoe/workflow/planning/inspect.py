"""Describe a checkpoint: family, layers, experts, and its size for each share of experts that is kept."""

from pathlib import Path
from typing import Any

from mergemoe.checkpoints import config_keys, cost, expert_headers, model_folder, validation
from mergemoe.checkpoints.expert_headers import read_expert_sizes, read_plain_headers
from mergemoe.moe import layer_sizes
from mergemoe.workflow.planning.block_formats import formats_table

SHARES = (0.75, 0.5, 0.25)


def inspect_checkpoint(path: str | Path) -> str:
    """Return the description of a checkpoint as text.

    Raises:
        UserError: if its headers or config.json show that it cannot be compressed.
    """
    validation.check_checkpoint(path)
    layers = expert_headers.count_experts(path)
    config: dict[str, Any] = model_folder.read_config(path)
    whole, sized = cost.count_cost(path, read_plain_headers(path)), read_expert_sizes(path)
    routed = sum(sized[layer]["bytes"] for layer in layers)
    counts = sorted(set(layers.values()))
    lines = [
        f"family       {config.get('model_type')} ({', '.join(config.get('architectures') or ['?'])})",
        f"MoE layers   {len(layers)} (numbers {min(layers)} to {max(layers)})",
        f"experts      {', '.join(map(str, counts))} per layer, {config_keys.config_top_k(config)} work on a token",
        f"parameters   {whole['parameters']:,.0f}, {routed / whole['bytes']:.0%} of the bytes in routed experts",
        f"bytes        {whole['bytes']:,.0f}",
        "",
        "experts kept   bytes          of full",
    ]
    for share in SHARES:
        saved = sum(
            sized[layer]["bytes"] * (n - layer_sizes.kept_experts(share, n)) // n for layer, n in layers.items()
        )
        left = whole["bytes"] - saved
        lines.append(f"{share:<14} {left:<14,.0f} {left / whole['bytes']:.0%}")
    full = sorted({sized[layer]["width"] for layer in layers})
    kept = [
        (share, layer_sizes.kept_width(share, width, layer_sizes.WIDTH_MULTIPLE)) for share in SHARES for width in full
    ]
    widths = [*(("down", width) for width in full), *((f"down, width: {share}", width) for share, width in kept)]
    lines += [
        "",
        "formats that quantize an expert of this width:",
        formats_table([config_keys.needed_size(config, "hidden_size")], widths),
    ]
    return "\n".join(lines)
