"""The sources of a packed copy of a run: its checkpoint, and the grids of its quantized layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mergemoe.artifacts import digests, paths, store, verify
from mergemoe.artifacts.formats.safetensors_header import read_header
from mergemoe.artifacts.reading import reading
from mergemoe.artifacts.run import Run
from mergemoe.compressed import packed
from mergemoe.errors import ArtifactError, damaged_artifact, remade
from mergemoe.moe.layout_types import Layout
from mergemoe.report import model_card


class Packing(NamedTuple):
    """A checkpoint whose experts can be packed; `options` are those of its quantization, `layers` its files."""

    source: Path
    places: Mapping[str, packed.Place]
    options: Mapping[str, Any]
    layers: Mapping[int, str]

    def write(self, card: Path, out: Path) -> None:
        """Write the packed checkpoint, with what the card of the run says of it, into a new folder."""
        packed.write_packed(
            self.source, self.places, lambda layer: store.read_tensors(self.layers[layer]), self.options, out
        )
        files = digests.sha256_each(out)
        text = model_card.packed_card(card.read_text(encoding="utf-8"), files)
        (out / "README.md").write_text(text, encoding="utf-8")


def packing_of(source: Path) -> Packing:
    """Return the sources of a packed copy of a run's checkpoint.

    Raises:
        UserError: if it cannot be, or the layers that it was made from are not there as they were.
    """
    listed = source / "provenance.json"
    made = store.read_json(listed)["provenance"]
    chosen = made["params"]
    run = Run(**{section: chosen[section]["name"] for section in Run._fields if section in chosen})
    described = paths.LAYOUT.format(**run.wildcards)
    layout: Layout = store.read_json(described)
    places = packed.packed_places(source, layout, chosen.get("quantize"))
    numbers = sorted({place.layer for place in places.values()})
    layers = {n: paths.QUANTIZED.format(**run.wildcards, layer=paths.layer_name(n)) for n in numbers}
    for path in layers.values():
        with reading(path):
            names = read_header(path).tensors
        if "up_scale" not in names:
            raise damaged_artifact(path, "has no grids: an older version made it")
    try:
        verify.check_links(listed, {path: made["inputs"][path] for path in (described, *layers.values())}, Path(), {})
    except ArtifactError as error:
        raise ArtifactError(f"{error}. {remade(source)}") from None
    return Packing(source, places, chosen["quantize"], layers)
