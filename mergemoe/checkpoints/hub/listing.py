"""Names, sizes and digests that the hub states of a commit's files, none of them believed before it is checked.

They become names of files in the cache and bound what is written there, and a hub is whatever HF_ENDPOINT names.
"""

import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from mergemoe.checkpoints.carried_files import FOLDERS, is_carried
from mergemoe.checkpoints.hub import hub_cache
from mergemoe.errors import UserError, in_short, shown

Answer = TypeVar("Answer")

MOST = 100_000  # entries of the top folder
LARGEST = 1 << 50  # bytes of a file
PATIENCE = 300.0  # seconds for an answer, whatever number of pages it has


class HubFile(NamedTuple):
    """A file: its name in the repository, its bytes, and its sha256 (large files, in LFS) or git's hash of it."""

    name: str
    size: int
    digest: str
    in_lfs: bool


def list_files(model: str, revision: str) -> dict[str, HubFile]:
    """Ask the hub for the files of a commit: those of its top folder, of further chat templates and of licenses.

    Raises:
        UserError: the answer is no list of files, or one of them has no plain name, size or digest.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile, RepoFolder

    def read() -> list[Any]:
        found = list(itertools.islice(HfApi().list_repo_tree(model, revision=revision), MOST + 1))
        for folder in [entry.path for entry in found if isinstance(entry, RepoFolder) and entry.path in FOLDERS]:
            found += itertools.islice(HfApi().list_repo_tree(model, folder, revision=revision), MOST + 1)
        return found

    try:
        found = answer(model, read)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:  # of the library's parser
        raise _refused(model, f"lists the files of {revision} in no known form ({in_short(error)})") from None
    if len(found) > MOST:
        raise _refused(model, f"lists more than {MOST:,} files at {revision}")
    return check_files(model, [entry for entry in found if isinstance(entry, RepoFile)])


def answer(model: str, ask: Callable[[], Answer]) -> Answer:
    """Return the answer to a question, if the hub gives it within PATIENCE: it may answer page after page.

    Raises:
        UserError: it does not; other errors pass.
    """
    outcome: Future[Answer] = Future()

    def run() -> None:
        try:
            outcome.set_result(ask())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # nobody waits for it at the end of the process
    try:
        return outcome.result(PATIENCE)
    except TimeoutError:
        if not outcome.done():
            raise _refused(model, f"has not answered a question in {PATIENCE:g} s") from None
        raise


def check_files(model: str, entries: Iterable[Any]) -> dict[str, HubFile]:
    """Return the files that list_files asks for by name, from huggingface_hub's entries.

    Raises:
        UserError: an entry has no plain name, size or digest, or a name is there twice.
    """
    listed: dict[str, HubFile] = {}
    for entry in entries:
        name, size, digest = entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id
        if not isinstance(name, str) or not all(map(hub_cache.is_plain_name, name.split("/"))):
            raise _refused(model, f"lists a file with the name {shown(name)}, which leads out of its folder or is none")
        if "/" in name and not is_carried(name):
            continue
        if type(size) is not int or not 0 <= size <= LARGEST or (entry.lfs and entry.lfs.size != size):
            raise _refused(model, f"states the size {shown(size)} for {name}, which is none")
        pattern = hub_cache.SHA256 if entry.lfs else hub_cache.GIT_HASH
        if not isinstance(digest, str) or not pattern.fullmatch(digest):
            raise _refused(model, f"states the digest {shown(digest)} for {name}, which is none")
        if name in listed:
            raise _refused(model, f"lists {name} twice")
        listed[name] = HubFile(name, size, digest, entry.lfs is not None)
    return listed


def check_commit(model: str, revision: str, name: str, digest: str) -> None:
    """Check that the hub answers for a commit with this commit, and for a file with the digest that it listed.

    Raises:
        UserError: it does not.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    said = get_hf_file_metadata(hf_hub_url(model, name, revision=revision))
    if said.commit_hash != revision:
        raise _refused(model, f"answers with the commit {shown(said.commit_hash)} where {revision} was asked for")
    if said.etag != digest:
        raise _refused(model, f"states the digest {shown(said.etag)} for {name}, but lists {digest}")


def _refused(model: str, fact: str) -> UserError:
    from huggingface_hub import constants

    return UserError(
        f"{model}: {constants.ENDPOINT} {fact}. A sound hub never does, so nothing was recorded. Look at HF_ENDPOINT "
        "and at proxies between this machine and the hub, then run the same command again"
    )
