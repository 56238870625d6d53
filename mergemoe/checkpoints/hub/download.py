"""Download a file of the hub into huggingface_hub's cache; a killed download is continued.

A killed download of huggingface_hub starts a file again from zero (huggingface_hub issue #4196), and shards have
gigabytes; and it names files by what the hub's headers say. So the files come into a part beside the cache's blobs, are
checked, and are linked here. huggingface_hub is imported on use.
"""

import hashlib
import io
import os
from pathlib import Path

from mergemoe.artifacts import digests, reading
from mergemoe.checkpoints.hub import hub_cache, listing
from mergemoe.checkpoints.hub.listing import HubFile
from mergemoe.errors import UserError

PART = ".mergemoe.incomplete"  # huggingface_hub, too, treats names that end in .incomplete as partial files
_OTHER = "has another sha256 or git hash than the hub states"


def is_there(model: str, file: HubFile, whole: bool = False) -> bool:
    """Tell whether the cache has a file's content; unchecked, unless it is to be `whole`.

    Raises:
        UserError: something else is in its place, or it is damaged.
    """
    path = hub_cache.blobs_folder(model) / file.digest
    _refuse_no_file(path)
    if whole and path.exists() and not is_listed(path, file):
        raise UserError(
            f"{path} is damaged: it has another sha256 or git hash than its name. Delete it and run this again"
        )
    return path.exists()


def receive(model: str, revision: str, file: HubFile) -> None:
    """Download a file into the blobs of the cache.

    Raises:
        UserError: it is not the file that the hub lists.
    """
    from huggingface_hub import constants, hf_hub_download

    if file.size <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        return _download(model, revision, file)
    listing.check_commit(model, revision, file.name, file.digest)  # the hub sends it by Xet only
    path = Path(hf_hub_download(model, file.name, revision=revision))
    if not is_listed(path, file):
        path.resolve().unlink()
        raise _another(model, file, _OTHER)


def link(model: str, revision: str, file: HubFile) -> None:
    """Put a file into the folder of its commit, as a link to its blob."""
    path = hub_cache.snapshot_folder(model, revision) / file.name
    if path.exists():
        reading.refuse_no_file(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(hub_cache.blobs_folder(model) / file.digest, path.parent))


def is_listed(path: Path, file: HubFile, sha256: str | None = None) -> bool:
    """Tell whether a file is the one that the hub lists; its sha256 is computed if it is not given."""
    if path.stat().st_size != file.size:
        return False
    if file.in_lfs:
        return (sha256 or digests.sha256(path)) == file.digest
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as opened:
        while block := opened.read(2**20):
            found.update(block)
    return found.hexdigest() == file.digest


class _Part(io.BufferedWriter):
    """A part of a file that takes no more bytes than the file has."""

    def __init__(self, path: Path, file: HubFile, model: str):
        super().__init__(io.FileIO(path, "a"))
        self.file, self.model = file, model

    def write(self, buffer: bytes) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write a block.

        Raises:
            UserError: if it does not belong to the file any more.
        """
        if self.tell() + len(buffer) > self.file.size:
            raise _another(self.model, self.file, f"has more than the {self.file.size:,} bytes that the hub states")
        return super().write(buffer)


def _download(model: str, revision: str, file: HubFile) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    blob = hub_cache.blobs_folder(model) / file.digest
    part = blob.with_name(f"{file.digest}{PART}")
    _refuse_no_file(part)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    try:
        with _Part(part, file, model) as opened:
            url = hf_hub_url(model, file.name, revision=revision)
            http_get(url, opened, resume_size=opened.tell(), headers=build_hf_headers(), expected_size=file.size)
        if not is_listed(part, file):
            raise _another(model, file, _OTHER)
    except UserError:
        part.unlink()
        raise
    part.rename(blob)


def _refuse_no_file(path: Path) -> None:
    """Refuse what would be written through, or be waited for: a link, a folder, a pipe."""
    reading.refuse_no_file(path)
    if path.is_symlink():
        raise UserError(f"{path} is a link, and a file belongs there. Delete it and run the same command again")


def _another(model: str, file: HubFile, fact: str) -> UserError:
    return UserError(
        f"{file.name} of {model}: what came {fact}. It was deleted, and nothing was recorded. Run the same command "
        "again. If this repeats, something between this machine and the hub changes files"
    )
