"""Write the average of checkpoints as a checkpoint.

One tensor after another is averaged in float32 and stored in its own dtype. Everything else is that of the newest.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from mergemoe.checkpoints import carried_files, model_folder
from mergemoe.checkpoints.expert_weights import StoredTensors
from mergemoe.checkpoints.shards import write_shards
from mergemoe.models.averaging import averages
from mergemoe.progress import track

SHARD = 4 << 30


def average_checkpoints(folders: Sequence[Path], shares: Sequence[float], out: Path) -> None:
    """Write the average of checkpoints into a new folder.

    Args:
        folders: the checkpoints, the newest last.
        shares: the weight of each.
        out: the folder.

    Raises:
        UserError: if they are not alike, or a tensor of whole numbers differs.
    """
    averages.check_alike(folders)
    newest = folders[-1]
    out.mkdir(parents=True)
    with ExitStack() as stack:
        stored = [stack.enter_context(StoredTensors(folder)) for folder in folders]
        names = track(_average(stored, shares), "average: tensors", len(stored[-1].headers))
        write_shards(names, out, SHARD)
    config = carried_files.without_code(model_folder.read_config(newest))
    (out / "config.json").write_text(json.dumps(config, sort_keys=True, indent=2) + "\n", encoding="utf-8")
    carried_files.copy_others(newest, out)


def _average(stored: Sequence[StoredTensors], shares: Sequence[float]) -> Iterator[tuple[str, Tensor]]:
    for name in stored[-1].headers:
        newest = stored[-1][name]
        if not newest.is_floating_point():
            for one in stored[:-1]:
                if not torch.equal(one[name], newest):
                    raise averages.apart(one.folder, stored[-1].folder, f"the whole numbers of {name} are others")
            yield name, newest
            continue
        mean = torch.zeros(newest.shape, dtype=torch.float32)
        for share, one in zip(shares, stored, strict=True):
            mean.add_(one[name].float(), alpha=share)
        yield name, mean.to(newest.dtype)
