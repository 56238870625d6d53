"""params.yaml as a file: plain YAML, each key once, and nothing in it is run."""

import os
import re

import pytest
from project import run
from snakemake.common.configfile import load_configfile

from mergemoe.errors import UserError
from mergemoe.workflow.config.params_file import check_files, read_file

CODE = "__use_yte__: true\n__definitions__:\n  - import pathlib\n  - pathlib.Path('ran').touch()\n"
NOT_YAML = {
    "a key twice": ("solve:\n  a: {method: average}\n  a: {method: mergemoe}\n", "'a' is there twice.*line 3"),
    "a key twice in a flow": ("calibrate: {mixed: {samples: 8, samples: 9}}", "'samples' is there twice"),
    "a section twice": ("capture: {}\nmodel: {}\ncapture: {}\n", "'capture' is there twice"),
    "a key that is a list": ("[1, 2]: 3", "a key must be a name"),
    "templates": (CODE, "has __use_yte__, with which Snakemake runs code"),
    "a Python object": ("model: !!python/object/apply:os.system ['touch ran']", "cannot be read as YAML"),
    "a number of 6,000 digits": ("model: 0x" + "f" * 5000, "a number is too large.*line 1"),
    "a key of as many": ("? 0x" + "f" * 5000 + "\n: 1", "a number is too large"),
    "a long name twice": ("{" + 2 * ("? " + "n" * 9999 + " : 1, ") + "}", "nn\\.\\.\\.nn.*line 1"),
    "a tab": ("model:\n\t- x", "cannot be read as YAML"),
    "an open bracket": ("model: [", "cannot be read as YAML"),
    "NUL": ("model: \0", "cannot be read as YAML"),
    "a key twice in JSON": ('{"a": 1, "b": {"c": 1, "d": 2, "d": 3}}', "'d' is there twice"),
    "a number of 6,000 digits in JSON": ('{"a": 1' + "0" * 6000 + "}", "cannot be read as YAML"),
    "nesting in JSON": ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "cannot be read as YAML"),
    "a list": ("- 1", "holds no sections"),
    "nothing": ("", "holds no sections"),
    "nesting": ("a: " + "[" * 5000, "cannot be read as YAML"),
}


@pytest.mark.parametrize(("text", "words"), NOT_YAML.values(), ids=NOT_YAML)
def test_what_is_no_plain_yaml_is_refused_with_the_place(tmp_path, text, words):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"params.yaml .*{words}") as refused:
        read_file(path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 800


def test_anchors_and_merges_are_read_as_yaml_has_them(tmp_path):
    (tmp_path / "params.yaml").write_text("a: &base {samples: 8, length: 9}\nb: {<<: *base, length: 7}\n")
    assert read_file(tmp_path / "params.yaml") == {"a": {"samples": 8, "length": 9}, "b": {"samples": 8, "length": 7}}


def test_json_is_read_as_json_as_snakemake_reads_it(tmp_path):
    """In YAML, 1e-3 is a text, and a tab is no space."""
    path = tmp_path / "params.yaml"
    path.write_text('{\n\t"solve": {"ridge": 1e-3}}')
    assert read_file(path) == {"solve": {"ridge": 0.001}} == load_configfile(path)


def test_files_of_configfile_are_checked_like_params_yaml(tmp_path):
    good, twice, pipe = (str(tmp_path / name) for name in ("good.yaml", "twice.yaml", "pipe"))
    (tmp_path / "good.yaml").write_text("a: 1")
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2")
    os.mkfifo(pipe)
    check_files(tmp_path / "none.yaml", [])
    check_files(good, [good])
    with pytest.raises(UserError, match="twice.yaml .*'a' is there twice"):
        check_files(good, [twice])
    with pytest.raises(UserError, match="--configfile names 2 files, whose choices Snakemake would mix. Name one"):
        check_files(good, [good, good])
    with pytest.raises(UserError, match="--configfile .*pipe is a pipe, which is read only once"):
        check_files(good, [pipe])


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"model: \xff")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        read_file(tmp_path / "params.yaml")


def test_a_file_that_is_no_params_yaml_is_not_read_whole(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(UserError, match="params.yaml has 1,000,001 bytes; at most 1,000,000 are read"):
        read_file(tmp_path / "params.yaml")


@pytest.mark.workflow
@pytest.mark.parametrize("name", ["a key twice", "templates"])
def test_snakemake_and_plan_refuse_the_same_file_and_run_nothing_of_it(finished, tmp_path, name):
    text, words = NOT_YAML[name]
    params = finished / "params.yaml"
    kept = params.read_text()
    try:
        params.write_text(text if name == "templates" else kept + "\nruns: []\n")
        for command in (("snakemake", "--dry-run"), ("mergemoe", "plan")):
            done = run(finished, *command, ok=False)
            assert done.returncode != 0 and "Traceback" not in done.stderr
            assert re.search("'runs' is there twice|has __use_yte__", done.stdout + done.stderr)
    finally:
        params.write_text(kept)
    assert not (finished / "ran").exists()
