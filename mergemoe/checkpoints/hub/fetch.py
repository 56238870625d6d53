"""Download models of the Hugging Face hub at one commit into huggingface_hub's cache, check and record them."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

from mergemoe.artifacts import digests
from mergemoe.checkpoints import carried_files, model_folder
from mergemoe.checkpoints.hub import download, hub_cache, hub_record, listing
from mergemoe.checkpoints.hub.listing import HubFile
from mergemoe.errors import UserError, in_short, one_line, shown
from mergemoe.progress import track

_AT_ONCE = 4  # files downloaded in parallel
_INDEX = 2**28  # bytes of an index, which is read whole; one of a million tensors has half of it


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
    known = hub_record.read_fetch_record(model, revision)
    listed: dict[str, HubFile] = {}
    checked: set[str] = set()
    if not known or not all((folder / name).is_file() for name in known):
        with _asking(model, revision):
            listed, checked = _bring(model, revision)
    files = {}
    for name in track(sorted(listed or known), f"{model}: sha256 of its files"):
        file = folder / name
        sha256 = listed[name].digest if name in checked else digests.sha256(file)
        as_listed = name not in listed or download.is_listed(file, listed[name], sha256)
        if not as_listed or known.get(name, {}).get("sha256", sha256) != sha256:
            raise UserError(
                f"{file}: its sha256 is {sha256}, but {path if as_listed else 'the hub'} states another. Nothing was "
                f"recorded. Delete {file.resolve()} and run `{hub_cache.fetch_command(model, revision)}` again"
            )
        files[name] = {"size": file.stat().st_size, "sha256": sha256}
    if known and files != known:
        wrong = sorted(name for name in files | known if files.get(name) != known.get(name))
        raise UserError(
            f"{path} names other files than the hub, or states other sizes: {', '.join(wrong)[:200]}. Nothing was "
            f"recorded. Restore it with git, or delete it and run `{hub_cache.fetch_command(model, revision)}` again"
        )
    return hub_record.write_fetch_record(model, revision, files)


def _commit_of(model: str, revision: str) -> str:
    """Return the message for a revision that is no full commit hash, with the hash that it has now."""
    from huggingface_hub import HfApi, constants

    text = f"{model}: `--revision` must be a full commit hash (40 hexadecimal digits), because a branch or tag can move"
    reason = None
    for name in dict.fromkeys((revision, "main")):
        try:
            with _asking(model, name):
                commit = listing.answer(model, lambda name=name: HfApi().model_info(model, revision=name)).sha
                if not isinstance(commit, str) or not hub_cache.COMMIT.fullmatch(commit):
                    raise UserError(f"{constants.ENDPOINT} names the commit {shown(commit)} for {name}, which is none")
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
    except (UserError, MemoryError):
        raise
    except (errors.HTTPError, OSError) as error:
        reason = one_line(str(error).partition("\n")[0] or type(error).__name__)
        raise UserError(
            f"{model} could not be downloaded from {constants.ENDPOINT} ({reason}). Partial files are kept. Run the "
            "same command again to continue"
        ) from None
    except Exception as error:  # of huggingface_hub's parsers and its client: an answer in no known form has no end
        raise UserError(
            f"{model}: {constants.ENDPOINT} gave an answer that cannot be read ({in_short(error)}). Partial files are "
            "kept. Look at HF_ENDPOINT and at proxies between this machine and the hub, then run the same command again"
        ) from None


def _bring(model: str, revision: str) -> tuple[dict[str, HubFile], set[str]]:
    """Download missing files; return {file: what the hub states of it}, and the files whose sha256 was checked now."""
    from huggingface_hub.utils import WeakFileLock

    listed = listing.list_files(model, revision)
    _check_kind(model, listed)
    listing.check_commit(model, revision, "config.json", listed["config.json"].digest)
    blobs = hub_cache.blobs_folder(model)
    blobs.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(blobs.parent / "mergemoe.lock"), ThreadPool(_AT_ONCE) as pool:  # one fetch of a model at a time
        wanted = {name: listed[name] for name in _needed(model, revision, listed)}
        missing = {file.digest: file for file in wanted.values() if not download.is_there(model, file)}
        _check_space(model, blobs, missing.values())
        jobs = pool.imap_unordered(lambda file: download.receive(model, revision, file), missing.values())
        for _ in track(jobs, f"{model}: files", len(missing)):
            pass
        for name in sorted(wanted, key=lambda name: name == "config.json"):  # it says that the model is there, so last
            download.link(model, revision, wanted[name])
    return wanted, {name for name, file in wanted.items() if file.in_lfs and file.digest in missing}


def _needed(model: str, revision: str, listed: Mapping[str, HubFile]) -> list[str]:
    """Return the names of the files that a run needs; the index comes for this."""
    weights = [model_folder.SINGLE]
    if model_folder.INDEX in listed:
        if listed[model_folder.INDEX].size > _INDEX:
            raise UserError(
                f"{model} at {revision}: {model_folder.INDEX} has more than {_INDEX:,} bytes, so it is none"
            )
        if not download.is_there(model, listed[model_folder.INDEX], whole=True):
            download.receive(model, revision, listed[model_folder.INDEX])
        download.link(model, revision, listed[model_folder.INDEX])
        folder = hub_cache.snapshot_folder(model, revision)
        weights = sorted(set(model_folder.read_weight_map(folder).values()))
    for name in weights:
        if name not in listed:
            raise UserError(
                f"{model} at {revision}: {name} is missing on the hub, but {model_folder.INDEX} names it. Use another "
                "revision"
            )
    others = [name for name in listed if model_folder.is_beside_weights(name) or carried_files.is_carried(name)]
    return [*others, *([carried_files.CARD] if carried_files.CARD in listed else []), *weights]


def _check_kind(model: str, listed: Mapping[str, HubFile]) -> None:
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


def _check_space(model: str, blobs: Path, missing: Iterable[HubFile]) -> None:
    come = sum(path.stat().st_size for path in blobs.glob(f"*{download.PART}"))
    needed, free = sum(file.size for file in missing) - come, shutil.disk_usage(blobs).free
    said = f"{model} needs {needed / 1e9:.1f} GB more in {blobs}, where {free / 1e9:.1f} GB are free"
    if needed > free:
        raise UserError(f"{said}. Make room, or set HF_HOME to another folder")
    print(said, file=sys.stderr)
