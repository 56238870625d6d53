"""What lm-eval refuses in a task file when it runs the task is refused before the first job."""

import dataclasses
import typing

import pytest
from lm_eval.api.instance import OutputType
from lm_eval.config.task import TaskConfig

from mergemoe.errors import UserError
from mergemoe.evaluation.task_keys import KEYS, OUTPUT_TYPES
from mergemoe.workflow.config.evaluate import Task
from mergemoe.workflow.planning.preflight_tasks import check_task

TASK = "task: mine\ndoc_to_text: '{{text}}'\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
WRONG = {
    "a key of another version": ("stop_sequence: x\n", "lm-eval has no key 'stop_sequence'"),
    "a key that is a number": ("3: x\n", "lm-eval has no key 3"),
    "an output type": ("output_type: greedy_until\n", "`output_type: 'greedy_until'` is none of loglikelihood"),
    "a list of output types": ("output_type: [multiple_choice]\n", "is none of loglikelihood"),
    "no split": ("test_split: null\n", "neither `test_split` nor `validation_split`"),
    "a split without a file": (
        "dataset_kwargs: {data_files: {train: rows.jsonl}}\n",
        "the split 'test' is scored, but `data_files` has train",
    ),
    "files without splits": ("dataset_kwargs: {data_files: rows.jsonl}\n", "`data_files` has train"),
}


def folder_of(tmp_path, text, name="mine.yaml"):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / name).write_text(text.replace("rows.jsonl", str(tmp_path / "rows.jsonl")))
    return Task(include=str(tmp_path))


def merged(text):
    own = {line.partition(":")[0] for line in text.splitlines()}
    return "".join(line + "\n" for line in TASK.splitlines() if line.partition(":")[0] not in own) + text


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_key_is_refused_with_the_file(text, words, tmp_path):
    with pytest.raises(UserError, match=f"evaluate.tasks.mine: .*mine.yaml.*{words}"):
        check_task("mine", folder_of(tmp_path, merged(text)))


@pytest.mark.parametrize("text", ["", "dataset_kwargs: {data_files: {test: rows.jsonl}}\n", "validation_split: x\n"])
def test_a_task_with_its_split_does(text, tmp_path):
    check_task("mine", folder_of(tmp_path, merged(text)))


@pytest.mark.parametrize("joins", ["group: all\ntask: [mine]\n", "task: other\ntag: all\nstop: x\n"])
def test_the_members_of_a_group_and_a_tag_are_looked_at(joins, tmp_path):
    folder_of(tmp_path, merged("stop: x\n"))
    with pytest.raises(UserError, match="lm-eval has no key 'stop'"):
        check_task("all", folder_of(tmp_path, joins, "all.yaml"))


def test_tasks_of_the_folder_that_are_not_run_may_be_drafts(tmp_path):
    folder_of(tmp_path, merged("task: draft\nstop: x\n"), "draft.yaml")
    check_task("mine", folder_of(tmp_path, TASK))


def test_the_keys_and_kinds_of_output_are_those_of_lm_eval():
    assert {field.name for field in dataclasses.fields(TaskConfig)} == set(KEYS)
    assert set(typing.get_args(OutputType)) == set(OUTPUT_TYPES)
