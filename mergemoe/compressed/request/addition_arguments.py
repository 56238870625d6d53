"""Check what `mergemoe.compress` is told to do after the method: a refine, a quantization."""

from collections.abc import Mapping, Sequence
from typing import Any

from mergemoe.compressed.request.arguments import checked
from mergemoe.errors import UserError, shown
from mergemoe.methods import catalogue
from mergemoe.moe.layout_types import ModelLayout
from mergemoe.quantization import options as quantization
from mergemoe.reconstruction import options as reconstruction
from mergemoe.reconstruction.requirements import no_part


def refine_options(refine: str | Mapping[str, Any] | None, routing: str) -> dict[str, Any] | None:
    """Return all options of a refine, those that are given checked against their table; None without a refine.

    Raises:
        UserError: if there is no such option or value, or the router is to be fitted although it stays.
    """
    if refine is None:
        return None
    if not isinstance(refine, Mapping) and not (isinstance(refine, str) and refine == "auto"):
        raise UserError(f'`refine` must be "auto", or a mapping of its options; got {shown(refine)}')
    complete = checked("refine", reconstruction.LAYER, refine if isinstance(refine, Mapping) else {})
    if why := reconstruction.misfit(complete, routing):
        raise UserError(f"refine: {why}")
    return complete


def check_parts(described: ModelLayout, parts: Sequence[str]) -> None:
    """Check that the experts of every layer have one of the parts that a refine is to fit."""
    for entry in described["layers"]:
        if why := no_part(parts, entry["roles"]):
            raise UserError(f"refine: {why}")


def quantize_options(quantize: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return all options of a quantization with its kind, `by`; None without one.

    Raises:
        UserError: if there is no such kind, option or value.
    """
    if quantize is None:
        return None
    by = quantize.get("by") if isinstance(quantize, Mapping) else None
    if not isinstance(by, str) or by not in quantization.KINDS:
        raise UserError(
            f"`quantize` must be a mapping with `by`, one of {', '.join(quantization.KINDS)}; got {shown(quantize)}"
        )
    return {
        "by": by,
        **checked(f"quantize by {by}", quantization.KINDS[by], {k: v for k, v in quantize.items() if k != "by"}),
    }


def check_blocks(described: ModelLayout, quantized: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Check that the blocks of a quantization divide the rows of all experts; options: of the method."""
    for entry in described["layers"]:
        width = catalogue.kept_width(options, entry["width"])
        rows = {"rows of gate and up": entry["hidden_size"], "rows of down": width}
        if why := quantization.misfit(quantized, rows):
            raise UserError(f"quantize: {why}")
