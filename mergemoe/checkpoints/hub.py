"""Download models of the Hugging Face hub at one commit into huggingface_hub's cache, check and record them.

A killed download of huggingface_hub starts a file again from zero (huggingface_hub issue #4196), and shards have
gigabytes. So this module downloads the shards itself, into files beside the cache's blobs, and the next fetch continues
them. huggingface_hub downloads the other files and links the blobs into a folder. It is imported on use.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

from mergemoe.artifacts import atomic, digests
from mergemoe.checkpoints import hub_cache, hub_record, model_folder
from mergemoe.errors import UserError
from mergemoe.progress import track

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_AT_ONCE = 4  # shards downloaded in parallel
_PART = ".mergemoe.incomplete"  # huggingface_hub, too, treats names that end in .incomplete as partial files


def fetch_model(model: str, revision: str | None) -> Path:
    """Download the files of a model that a run needs, check each, write the record and return its path.

    Existing files are not downloaded again. If all exist and are recorded, no request goes to the hub.

    Args:
        model: the id, such as Qwen/Qwen3-30B-A3B.
        revision: the full commit hash.

    Raises:
        UserError: the model, the commit or safetensors are missing, the hub does not answer, or a file differs.
    """
    if not hub_cache.HUB_ID.fullmatch(model):
        raise UserError(f"{model!r} is not the id of a hub model. Give one like Qwen/Qwen3-30B-A3B")
    if revision is None or not hub_cache.COMMIT.fullmatch(revision):
        raise UserError(_commit_of(model, revision or "main"))
    path, folder = hub_cache.fetch_record_path(model, revision), hub_cache.snapshot_folder(model, revision)
    known = hub_record.read_fetch_record(path)
    listed: dict[str, RepoFile] = {}
    received: dict[str, str] = {}
    if not known or not all((folder / name).is_file() for name in known):
        with _asking(model, revision):
            listed, received = _bring(model, revision)
    files = {}
    for name in track(sorted(listed or known), f"{model}: sha256 of its files"):
        file = folder / name
        sha256 = received.get(name) or digests.sha256(file)
        as_listed = name not in listed or _is(file, sha256, listed[name])
        if not as_listed or known.get(name, {}).get("sha256", sha256) != sha256:
            raise UserError(
                f"{file}: its sha256 is {sha256}, but {path if as_listed else 'the hub'} states another. Nothing was "
                f"recorded. Delete {file.resolve()} and run `{hub_cache.fetch_command(model, revision)}` again"
            )
        files[name] = {"size": file.stat().st_size, "sha256": sha256}
    text = json.dumps({"model": model, "revision": revision, "files": files}, sort_keys=True, indent=1) + "\n"
    if not path.is_file() or path.read_text() != text:
        with atomic.atomic(path) as temporary:
            temporary.write_text(text)
    return path


def _is(file: Path, sha256: str, listed: "RepoFile") -> bool:
    """Return whether a file is the one that the hub lists, by its sha256, or by git's hash if the file is in git."""
    if listed.lfs is not None:
        return sha256 == listed.lfs.sha256
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == listed.blob_id


def _commit_of(model: str, revision: str) -> str:
    """Return the message for a revision that is no full commit hash, with the hash that it has now."""
    from huggingface_hub import HfApi

    text = f"{model}: `--revision` must be a full commit hash (40 hexadecimal digits), because a branch or tag can move"
    reason = None
    for name in dict.fromkeys((revision, "main")):
        try:
            with _asking(model, name):
                commit = HfApi().model_info(model, revision=name).sha or ""
            return f"{text}. For the commit that `{name}` is now: `{hub_cache.fetch_command(model, commit)}`"
        except UserError as error:
            reason = error
    return f"{text}. The current commit is not known: {reason}"


@contextmanager
def _asking(model: str, revision: str) -> Iterator[None]:
    """Turn the hub's errors into a UserError."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{model}: the hub has no revision {revision}. See `Files`, then `History` on the model's page"
        ) from None
    except errors.GatedRepoError:
        raise UserError(
            f"{model} is gated. Accept the conditions on the model's page, run `hf auth login`, then run this again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{constants.ENDPOINT} has no model {model}. Check the spelling; if it is private, run `hf auth login`"
        ) from None
    except (errors.HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{model} could not be downloaded from {constants.ENDPOINT} ({reason}). Partial files are kept. Run the "
            "same command again to continue"
        ) from None


def _bring(model: str, revision: str) -> tuple[dict[str, "RepoFile"], dict[str, str]]:
    """Download missing files; return {file: the hub's entry}, and {shard: sha256} of the shards downloaded now."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import WeakFileLock

    listed = {f.path: f for f in HfApi().list_repo_tree(model, revision=revision) if isinstance(f, RepoFile)}
    _check_kind(model, listed)
    weights = [model_folder.SINGLE]
    if model_folder.INDEX in listed:
        index = hf_hub_download(model, model_folder.INDEX, revision=revision)
        weights = sorted(set(model_folder.read_weight_map(Path(index).parent).values()))
    if missing := [name for name in weights if name not in listed]:
        raise UserError(
            f"{model} at {revision}: {missing[0]} is missing on the hub, but {model_folder.INDEX} names it. Use "
            "another revision"
        )
    others = [name for name in listed if model_folder.is_beside_weights(name)]
    wanted = {name: listed[name] for name in [*others, *weights]}
    blobs = hub_cache.snapshot_folder(model, revision).parents[1] / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    ours = [name for name in weights if listed[name].size <= constants.MAX_HTTP_DOWNLOAD_SIZE]  # hf_xet has the others
    with WeakFileLock(blobs.parent / "mergemoe.lock"), ThreadPool(_AT_ONCE) as pool:  # one fetch of a model at a time
        todo = {name: f for name in ours if (f := listed[name]).lfs and not (blobs / f.lfs.sha256).exists()}
        _check_space(model, blobs, todo)
        jobs = pool.imap_unordered(lambda name: _receive(model, revision, todo[name], blobs), todo)
        received = dict(track(jobs, f"{model}: shards", len(todo)))
    snapshot_download(model, revision=revision, allow_patterns=list(wanted))
    return wanted, received


def _check_kind(model: str, listed: Mapping[str, "RepoFile"]) -> None:
    if "config.json" not in listed:
        raise UserError(f"{model} has no config.json, so it is not in transformers' format. Use another repository")
    if model_folder.INDEX in listed or model_folder.SINGLE in listed:
        return
    if pickled := [name for name in listed if name.endswith(model_folder.PICKLES)]:
        raise UserError(
            f"{model} has only pickled weights ({pickled[0]}). A pickle can run any code when it is read, so it is "
            "never opened here. Use a commit or a copy with *.safetensors, or convert the model yourself and name the "
            "folder"
        )
    raise UserError(
        f"{model} has neither {model_folder.SINGLE} nor {model_folder.INDEX}, so it has no weights in a format that is "
        "read here. Use a repository with safetensors"
    )


def _check_space(model: str, blobs: Path, todo: Mapping[str, "RepoFile"]) -> None:
    come = sum(path.stat().st_size for path in blobs.glob(f"*{_PART}"))
    needed, free = sum(f.size for f in todo.values()) - come, shutil.disk_usage(blobs).free
    said = f"{model} needs {needed / 1e9:.1f} GB more in {blobs}, where {free / 1e9:.1f} GB are free"
    if needed > free:
        raise UserError(f"{said}. Make room, or set HF_HOME to another folder")
    print(said, file=sys.stderr)


def _receive(model: str, revision: str, file: "RepoFile", blobs: Path) -> tuple[str, str]:
    """Download a shard, continuing an earlier fetch, and move it to the blobs; return its name and sha256."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    sha256 = file.lfs.sha256 if file.lfs else ""
    part = blobs / f"{sha256}{_PART}"
    with part.open("ab") as opened:
        url = hf_hub_url(model, file.path, revision=revision)
        http_get(url, opened, resume_size=opened.tell(), headers=build_hf_headers(), expected_size=file.size)
    if (found := digests.sha256(part)) != sha256:
        part.unlink()
        raise UserError(
            f"{file.path} of {model} was downloaded with sha256 {found}, but the hub states {sha256}. The file was "
            "deleted, and nothing was recorded. Run the same command again. If this repeats, something between this "
            "machine and the hub changes files"
        )
    part.rename(blobs / sha256)
    return file.path, sha256
