"""A file is called damaged, with the advice to delete it, only if its content is."""

import errno
import fcntl
import os
import socket

import pytest
import torch

from mergemoe.artifacts import digests, provenance, store
from mergemoe.artifacts.reading import links_below, reading, refuse_links
from mergemoe.calibration.activation_file import Reader, Writer
from mergemoe.errors import ArtifactError


def refusal(error):
    with pytest.raises(ArtifactError) as refused, reading("results/x.json"):
        raise error
    return str(refused.value)


def of_system(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ENOMEM])
def test_what_the_system_cannot_read_is_not_called_damaged(number):
    said = refusal(of_system(number))
    assert "results/x.json cannot be read now" in said and "do not delete it" in said and "Delete it" not in said


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EAGAIN])
def test_what_hdf5_could_not_read_is_not_called_damaged(number):
    text = "Unable to synchronously open object (file read failed: filename = 'x.h5', errno = {}, error message = '"
    assert "do not delete it" in refusal(KeyError(text.format(number)))  # as HDF5 2.0 says it


def test_a_reader_needs_no_lock(tmp_path):
    """Network file systems refuse locks, and other programs hold them; files are whole once they have their names."""
    (path := tmp_path / "results" / "layer_000.h5").parent.mkdir()
    rows = {"hidden": torch.ones(3, 2), "sequence": torch.zeros(3, dtype=torch.int32)}
    for _ in range(2):
        writer = Writer(path, torch.zeros(1))
        writer.append(**rows, expert_index=torch.zeros(3, 1), weights=torch.ones(3, 1))
        writer.close({"path": "results/layer_000.h5", "layer": 0})
        with path.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with Reader(path) as reader:
                assert torch.equal(reader.read("hidden", 0, 3), rows["hidden"])
            digests.digest_artifact(path)
            assert provenance.read_provenance(path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_while_rows_are_read_is_said(number, tmp_path):
    path = tmp_path / "layer_000.h5"
    writer = Writer(path, torch.zeros(1))
    columns = {"hidden": torch.ones(3, 2), "sequence": torch.zeros(3, dtype=torch.int32)}
    writer.append(**columns, expert_index=torch.zeros(3, 1))
    writer.close({"path": str(path), "layer": 0})

    class Failing:
        def __getitem__(self, _):
            raise of_system(number)

    reader = Reader(path)
    reader.file.close()
    reader.file = {"hidden": Failing()}
    with pytest.raises(ArtifactError, match="layer_000.h5 cannot be read now .*do not delete it"):
        reader.read("hidden", 0, 3)


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), of_system(errno.EINVAL), OSError("of a library")])
def test_what_a_library_cannot_read_is_damaged(error):
    assert (
        "results/x.json cannot be read as an artifact" in (said := refusal(error))
        and "--forcerun results/x.json`" in said
    )


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR])
def test_what_is_not_there_is_missing(number):
    assert "results/x.json is missing" in (said := refusal(of_system(number))) and "Delete it" not in said


def test_a_reason_is_passed_on_as_it_is():
    assert refusal(ArtifactError("of the reader")) == "of the reader"


@pytest.fixture(params=["a pipe", "a device", "a folder", "a socket"])
def no_file(request, tmp_path):
    path = tmp_path / "results" / "x.json"
    path.parent.mkdir()
    if request.param == "a pipe":
        os.mkfifo(path)
    elif request.param == "a device":
        path.symlink_to("/dev/zero")  # it never ends
    elif request.param == "a folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(os.path.relpath(path))
    return path, request.param


@pytest.mark.timeout(20)
@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".h5"])
def test_what_is_no_file_is_refused_before_it_is_opened(no_file, suffix):
    path = no_file[0].rename(no_file[0].with_suffix(suffix))
    readers = [
        digests.digest_artifact,
        provenance.read_provenance,
        lambda path: store.check_files(path.parent, {path.name: ""}),
    ]
    readers += {".json": [store.read_json], ".safetensors": [store.read_tensors], ".h5": [Reader]}[suffix]
    readers += [digests.sha256] if no_file[1] != "a folder" else []  # a folder has one
    for read in readers:
        with pytest.raises(ArtifactError) as refused:
            read(path)
        assert f"{path} is {no_file[1]}, and a file belongs there" in str(refused.value)
        assert "Delete it" not in str(refused.value)


def test_links_pipes_and_devices_below_a_folder_are_found(tmp_path):
    results = tmp_path / "results"
    (results / "a/.hidden").mkdir(parents=True)
    (results / "a/x.json").write_text("{}")
    (results / "a/.hidden/link").symlink_to("nowhere")  # Snakemake's own
    refuse_links(results)
    refuse_links(tmp_path / "nothing")
    (results / "b").symlink_to(tmp_path)
    (results / "a/y.json").symlink_to("x.json")
    (results / "a/z.json").symlink_to("nowhere")
    os.mkfifo(results / "a/pipe")
    found = links_below(results)
    assert list(found) == [str(results / name) for name in ("a/pipe", "a/y.json", "a/z.json", "b")]
    with pytest.raises(
        ArtifactError, match=r"a/pipe is a pipe, which .* \(and 3 more\). Put the file or folder itself"
    ):
        refuse_links(results)
