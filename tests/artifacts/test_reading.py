"""A file is called damaged, with the advice to delete it, only if its content is."""

import errno
import os

import pytest

from mergemoe.artifacts.reading import reading
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


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), of_system(errno.EINVAL), OSError("of a library")])
def test_what_a_library_cannot_read_is_damaged(error):
    assert "results/x.json cannot be read as an artifact" in (said := refusal(error)) and "Delete it" in said


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR])
def test_what_is_not_there_is_missing(number):
    assert "results/x.json is missing" in (said := refusal(of_system(number))) and "Delete it" not in said


def test_a_reason_is_passed_on_as_it_is():
    assert refusal(ArtifactError("of the reader")) == "of the reader"
