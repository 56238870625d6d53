"""Open a checkpoint folder whose files were recorded with their sha256, and check what is about to be read.

The layout records the files of the original checkpoint, provenance.json those of a compressed one.
Every job that reads weights or a tokenizer comes through here, or through expert_weights.StoredTensors for one layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.artifacts import store
from mergemoe.checkpoints import model_folder
from mergemoe.errors import ArtifactError


def open_original(layout: Mapping[str, Any], weights: bool = True) -> Path:
    """Return the folder of the original checkpoint.

    Args:
        layout: the checkpoint's; one that was made without digests records no files, and none are checked.
        weights: whether the weights are read, too; else only the configuration and the tokenizer are.

    Raises:
        UserError: a model of the hub was not fetched.
        ArtifactError: a file is missing, differs from the recorded one, or was added.
    """
    folder = model_folder.locate_checkpoint(layout["path"], layout.get("revision"))
    if recorded := layout["files"]:
        read = {name: digest for name, digest in recorded.items() if weights or not name.endswith(".safetensors")}
        store.check_files(folder, read, original=True, once=True)
        there = {path.relative_to(folder).as_posix() for path in model_folder.checkpoint_files(folder)}
        if added := sorted(there - recorded.keys()):
            raise ArtifactError(
                f"{folder / added[0]} was added after the job `layout` read the checkpoint, whose tokenizer or weights "
                "it can change. Take it away; or, if you want the change, run `snakemake --forcerun layout`"
            )
    return folder


def open_scored(path: str, made: Mapping[str, Any]) -> Path:
    """Return the folder of a checkpoint that is scored.

    Args:
        path: a folder, or of an original a hub id.
        made: the layout of an original, or provenance.json of a compressed one.

    Raises:
        UserError: as in open_original.
        ArtifactError: as in open_original.
    """
    if "layers" in made:
        return open_original({**made, "path": path})
    store.check_whole(path, made["files"])
    return Path(path)
