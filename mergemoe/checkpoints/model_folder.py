"""Read a checkpoint folder's configuration, index and safetensors headers, all of them JSON.

This module imports neither torch nor transformers, because every job parses the Snakefile, which uses it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergemoe.artifacts.formats.safetensors_header import Entry, read_header
from mergemoe.checkpoints.config_keys import check_values
from mergemoe.checkpoints.hub.hub_cache import cache_folder, fetch_command, snapshot_folder
from mergemoe.checkpoints.json_object import AGAIN, LONGEST, read_object
from mergemoe.checkpoints.unmerged_parts import adapter_instead
from mergemoe.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BESIDE = (".json", ".model", ".jinja", ".txt")  # configuration, tokenizer, chat template
TEMPLATES = "additional_chat_templates"  # the folder of a tokenizer's further chat templates
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
LONGEST_NAME = 1000  # letters of a tensor's name


def locate_checkpoint(path: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint.

    Args:
        path: a folder; with `revision`, the id of a model of the hub.
        revision: the full commit hash.

    Raises:
        UserError: a model of the hub was not fetched.
    """
    if revision is None:
        return Path(path)
    folder = snapshot_folder(path, revision)
    if not (folder / "config.json").is_file():
        raise UserError(f"{path} at {revision} is not in {cache_folder()}. Run `{fetch_command(path, revision)}`")
    return folder


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return config.json as a dictionary.

    Raises:
        UserError: the file is missing, is no JSON object, or has a value of a wrong type.
    """
    path = Path(folder, "config.json")
    if not os.path.exists(path) and (
        adapter := adapter_instead(folder)
    ):  # pathlib's raises for a name that is too long
        raise UserError(adapter)
    inside = sorted(path.parent.glob("*")) if os.path.isdir(folder) else []
    if broken := [link for link in inside if link.is_symlink() and _is_read_and_gone(link)]:
        raise UserError(
            f"{folder} has {len(broken)} links to files that are gone, such as {broken[0].name}. The hub's cache was "
            "cleaned, or its snapshot was copied without its blobs. Copy the files themselves (`cp -rL`), or download "
            "the checkpoint again"
        )
    config = read_object(path)
    check_values(path, config)
    return config


def _is_read_and_gone(link: Path) -> bool:
    return not link.exists() and (is_beside_weights(link.name) or link.suffix == ".safetensors")


def shard_files(folder: str | Path) -> list[Path]:
    """Return the safetensors files that transformers reads: the files named in the index, or model.safetensors.

    Raises:
        UserError: the folder or a file is missing, or the files may belong to two checkpoints.
    """
    folder = Path(folder)
    read_config(folder)
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise UserError(adapter_instead(folder) or f"{folder} {_without_weights(folder)}")
        return [folder / SINGLE]
    named = sorted(set(read_weight_map(folder).values()))
    if (folder / SINGLE).is_file() and named != [SINGLE]:
        raise UserError(
            f"{folder} holds both {SINGLE} and {INDEX}, which names {len(named)} other files. These are two "
            "checkpoints in one folder. Move one of them elsewhere"
        )
    if missing := [name for name in named if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: {len(missing)} of the {len(named)} shards in {INDEX} are missing, such as {missing[0]}. {AGAIN}"
        )
    return [folder / name for name in named]


def _without_weights(folder: Path) -> str:
    if found := sorted(folder.glob("*.safetensors")):
        return (
            f"holds {len(found)} safetensors files, such as {found[0].name}, but neither {SINGLE} nor {INDEX}, which "
            "maps tensors to files. Download that file, too"
        )
    if pickled := sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES):
        return (
            f"holds only pickled weights ({pickled[0]}). A pickle can run any code when it is read, so it is never "
            "opened here. If you trust its source, convert it once: "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained('NEW'), and copy the "
            "files of the tokenizer to NEW"
        )
    return f"holds no *.safetensors file. {AGAIN}"


def read_weight_map(folder: Path) -> dict[str, str]:
    """Return {key: file} from the index of a sharded checkpoint."""
    stored_in = read_object(folder / INDEX).get("weight_map")
    if not isinstance(stored_in, dict) or not stored_in:
        raise UserError(f"{folder / INDEX} has no weight_map, which maps tensors to files. {AGAIN}")
    if not all(isinstance(name, str) for name in stored_in.values()):
        raise UserError(f"{folder / INDEX}: weight_map does not name a file for every tensor. {AGAIN}")
    for name in set(stored_in.values()):
        _check_name(folder / INDEX, name)
    return stored_in


def _check_name(index: Path, name: str) -> None:
    """Check that the index means a safetensors file of its own folder."""
    if name.endswith(PICKLES):
        raise UserError(
            f"{index} names {name[:80]!r}, pickled weights. A pickle can run any code when it is read, so it is never "
            "opened here. Use a checkpoint whose weights are all in safetensors files"
        )
    if not name.endswith(".safetensors") or Path(name).name != name or len(name) > 200:
        raise UserError(
            f"{index} names {name[:80]!r}{'...' if len(name) > 80 else ''}, which is not the name of a safetensors "
            f"file in its folder. {AGAIN}"
        )


def checkpoint_files(folder: str | Path) -> list[Path]:
    """Return the files that a model's outputs depend on: configuration, tokenizer and weights."""
    weights, folder = shard_files(folder), Path(folder)
    beside = [path for path in folder.iterdir() if is_beside_weights(path.name)]
    return sorted([*weights, *beside, *folder.glob(f"{TEMPLATES}/*.jinja")])


def is_beside_weights(name: str) -> bool:
    """Return whether a model's outputs depend on a file, weights excluded; its name is relative to the folder."""
    if "/" in name:
        return name.startswith(f"{TEMPLATES}/") and name.endswith(".jinja")
    return name.endswith(BESIDE) and not name.endswith(".bin.index.json")


def read_headers(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return {key: {dtype, shape, file, bytes}} of every stored tensor.

    Raises:
        UserError: a shard is incomplete, two shards hold the same key, or the index names another shard for a key.
    """
    headers: dict[str, dict[str, Any]] = {}
    files = shard_files(folder)
    if (length := sum(map(_header_bytes, files))) > LONGEST:
        raise UserError(
            f"{folder}: the headers of its {len(files)} shards have {length:,} bytes; at most {LONGEST:,} are "
            f"read. No model has so many tensors. {AGAIN}"
        )
    for path in files:
        for key, entry in _header(path).items():
            if key in headers:
                raise UserError(
                    f"{folder}: both {headers[key]['file']} and {path.name} hold {key}. The folder holds shards of "
                    "different checkpoints. Download the checkpoint into an empty folder"
                )
            size = entry.end - entry.start
            headers[key] = {"dtype": entry.dtype, "shape": entry.shape, "file": path.name, "bytes": size}
    if Path(folder, INDEX).is_file():
        _check_index(Path(folder), headers)
    return headers


def _header_bytes(path: Path) -> int:
    """Return the length that a shard states for its header, if the shard is so long."""
    try:
        with path.open("rb") as file:
            first, size = file.read(8), path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Look at its permissions and its disk") from None
    if first.startswith((b"version", b"<")):
        raise UserError(
            f"{path} is text, not a safetensors file. It is a pointer of git-LFS, or a web page that was "
            "downloaded instead of the file. Run `git lfs pull` in its folder, or download the file itself"
        )
    return min(int.from_bytes(first, "little"), size)


def _header(path: Path) -> dict[str, Entry]:
    try:
        found = read_header(path).tensors
    except (OSError, ValueError) as error:
        raise UserError(f"{path} {error}. {AGAIN}") from None
    if long := [key for key in found if len(key) > LONGEST_NAME]:
        raise UserError(f"{path} names a tensor by {len(long[0]):,} letters, {long[0][:80]}... . {AGAIN}")
    return found


def _check_index(folder: Path, headers: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that every tensor of the index is in the shard that the index names. Further tensors do no harm."""
    wrong = [(key, name) for key, name in read_weight_map(folder).items() if headers.get(key, {}).get("file") != name]
    if wrong:
        key, name = wrong[0]
        where = headers[key]["file"] if key in headers else "in no shard"
        raise UserError(
            f"{folder / INDEX} and the shards disagree on {len(wrong)} tensors: {key} should be in {name} and is "
            f"{where if key not in headers else f'in {where}'}. The index and the shards belong to different versions. "
            f"{AGAIN}"
        )
