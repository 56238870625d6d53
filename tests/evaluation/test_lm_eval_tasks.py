"""Stock tasks of lm-eval on local data: its own prompts, its own scores, and clear words where that cannot be."""

import errno
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets.exceptions import DatasetGenerationError
from tiny_project import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergemoe.errors import UserError
from mergemoe.evaluation import lm_eval_run, lm_eval_tasks, squad
from mergemoe.workflow.config.evaluate import SUITES, Evaluate

LIMIT = 6
spec = importlib.util.spec_from_file_location("seven_tasks", ROOT / "benchmarks" / "seven_tasks.py")
seven_tasks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(seven_tasks)


@pytest.fixture(scope="module")
def files() -> dict[str, dict[str, str]]:
    """{task: data_files} of the seven."""
    if "MERGEMOE_SHARED" not in os.environ:
        pytest.skip("MERGEMOE_SHARED names no folder with the tasks' data")
    return seven_tasks.data_files(Path(os.environ["MERGEMOE_SHARED"], "data"))


@pytest.fixture(scope="module")
def demo():
    folder = ROOT / "data" / "demo-moe"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def scored(files, demo):
    """What the seven score on the demo model."""
    found = {}
    for name, data_files in files.items():
        with lm_eval_tasks.open_task(name, None, data_files, 0) as task:
            found[name] = lm_eval_run.score_task(*demo, task, fewshot=0, limit=LIMIT, batch_size=4)
    return found


@pytest.mark.full
@pytest.mark.timeout(600)
def test_every_score_has_its_standard_error_its_version_and_its_number_of_samples(scored):
    for name, one in scored.items():
        assert one["version"] == 1 and one["samples"] == LIMIT and one["shots"] == [0]
        for metric in [key for key in one["scores"] if not key.endswith("_stderr")]:
            assert f"{metric}_stderr" in one["scores"], (name, metric)
    assert set(scored["arc_easy"]["scores"]) == {"acc", "acc_norm", "acc_stderr", "acc_norm_stderr"}
    assert set(scored["squad_completion"]["scores"]) == {"contains", "contains_stderr"}


@pytest.mark.full
@pytest.mark.timeout(600)
def test_what_differs_from_the_stock_task_is_said_beside_the_score(scored):
    notes = {name: one["note"] for name, one in scored.items() if one["note"]}
    assert notes == {
        "squad_completion": squad.NOTE,
        "mrpc": "on the split 'test'; lm-eval's own task is scored on 'validation'",
    }


def command_line(folder, files, shots, limit=LIMIT):
    """What lm-eval's command line writes of stock tasks on local files, on the demo model."""
    for name, data_files in files.items():
        # mrpc's f1 is left out: the command line draws 100,000 resamples for its standard error, 20 minutes of them.
        text, _ = lm_eval_tasks.local_task_file(
            name, lm_eval_tasks.find_stock_file(name), data_files, shots, str(folder / "cache")
        )
        if name == "mrpc":
            text = yaml.safe_dump({**yaml.safe_load(text), "metric_list": [{"metric": "acc"}]})
        (folder / f"{name}.yaml").write_text(text)
    options = {
        "--model": ["hf"],
        "--tasks": list(files),
        "--include_path": [str(folder)],
        "--model_args": [f"pretrained={ROOT}/data/demo-moe", "dtype=float32"],
        "--device": ["cpu"],
        "--batch_size": ["4"],
        "--limit": [str(limit)],
        "--num_fewshot": [str(shots)],
        "--output_path": [str(folder / "out")],
    }
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        *(word for name, words in options.items() for word in (name, *words)),
    ]
    offline = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "hf")}
    done = subprocess.run(command, cwd=folder, env={**os.environ, **offline}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next((folder / "out").rglob("results*.json")).read_text())


def assert_the_same(name, written, one):
    own = {key.replace(",none", ""): x for key, x in written["results"][name].items() if key.endswith(",none")}
    own = {key: value for key, value in own.items() if isinstance(value, float)}
    assert own == {key: one["scores"][key] for key in own}, name
    assert len(own) >= 2
    assert written["n-samples"][name]["effective"] == one["samples"]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_scores_are_those_of_lm_evals_command_line(scored, files, tmp_path):
    written = command_line(tmp_path, files, 0)
    for name, one in scored.items():
        assert_the_same(name, written, one)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_examples_of_a_prompt_are_those_of_the_command_line(files, demo, tmp_path):
    data_files = {"train": files["arc_challenge"]["test"], "test": files["arc_easy"]["test"]}
    with lm_eval_tasks.open_task("arc_easy", None, data_files, 3) as task:
        one = lm_eval_run.score_task(
            *demo, task, fewshot=3, limit=40, batch_size=4
        )  # fewer rows do not tell seeds apart
    assert_the_same("arc_easy", command_line(tmp_path, {"arc_easy": data_files}, 3, limit=40), one)


def test_a_prompt_is_the_stock_tasks(files):
    with lm_eval_tasks.open_task("arc_easy", None, files["arc_easy"], 0) as task:
        loaded = task.manager.load([task.spec])["tasks"]["arc_easy"]
        doc = next(iter(loaded.test_docs()))
        assert loaded.doc_to_text(doc) == f"Question: {doc['question']}\nAnswer:"
        assert loaded.doc_to_choice(doc) == doc["choices"]["text"]


def test_a_row_of_squad_is_its_context_question_and_first_answer():
    one = {"context": " The sky is blue. ", "question": "What is blue? ", "answers": {"text": ["The sky", "sky"]}}
    made = {"text": "The sky is blue.\nQuestion: What is blue?\nAnswer:", "value": "The sky"}
    assert squad.row("a.jsonl", 1, one) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "row 7: field 'context' is null"),
        ({"question": "\ud83d"}, "row 7: field 'question' holds '.ud83d' at character 1"),
        ({"answers": None}, "row 7: field 'answers' has no list"),
        ({"answers": {"text": []}}, "row 7: field 'answers' has no list"),
        ({"answers": {"text": [3]}}, "row 7: field 'answers.text' is a number"),
    ],
)
def test_a_row_of_squad_that_is_none_is_named(change, message):
    one = {"context": "a", "question": "b", "answers": {"text": ["c"]}, **change}
    with pytest.raises(UserError, match=message):
        squad.row("a.jsonl", 7, one)


def opened(name, include=None, data_files=None, fewshot=0):
    with lm_eval_tasks.open_task(name, include, data_files or {}, fewshot) as task:
        return task


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "no_such_task"}, r"evaluate\.tasks\.no_such_task: lm-eval .* has no such task"),
        ({"name": "no_such_task", "include": "data/blimp"}, r"no_such_task: no file in data/blimp defines this task"),
        ({"name": "blimp", "data_files": {"train": "x.jsonl"}}, "no single task of this name"),
        ({"name": "arc_easy", "data_files": {"train": "a", "dev": "b"}}, r"has train, dev, but .* is scored on 'test'"),
        ({"name": "arc_easy", "data_files": {"test": "a"}, "fewshot": 2}, r"needs 2 examples from the split 'train'"),
        ({"name": "gsm8k", "data_files": {"test": "a"}, "fewshot": None}, r"needs 5 examples from the split 'train'"),
        ({"name": "truthfulqa_mc1", "fewshot": 2}, "fewshot is 2, but lm-eval's own task never takes examples"),
        ({"name": "squad_completion", "data_files": {"test": "a"}}, "Give its split `validation`"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_the_key(asked, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        opened(**asked)


def test_a_stock_task_without_the_hub_says_what_helps(demo):
    with (
        lm_eval_tasks.open_task("arc_easy", None, {}, 0) as task,
        pytest.raises(UserError, match="set `data_files` for the task"),
    ):
        lm_eval_run.score_task(*demo, task, fewshot=0, limit=2, batch_size=2)


def of_a_gpu(*_, **__):
    raise torch.OutOfMemoryError("no more")


def of_a_cpu(*_, **__):
    torch.empty(1 << 60, dtype=torch.uint8)


def of_python(*_, **__):
    bytearray(1 << 60)


@pytest.mark.parametrize("fails", [of_a_gpu, of_a_cpu, of_python])
def test_out_of_memory_names_the_key_to_lower(demo, monkeypatch, fails):
    monkeypatch.setattr(lm_eval_run.lm_eval, "simple_evaluate", fails)
    with pytest.raises(UserError, match=r"evaluate\.tasks\.arc_easy: out of memory with batch_size 7"):
        lm_eval_run.score_task(*demo, opened("arc_easy"), fewshot=0, limit=2, batch_size=7)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("piqa", "no JSON\n", "ArrowInvalid: JSON parse error"),
        ("piqa", "", "(StopIteration|SchemaInferenceError)"),
        ("piqa", '{"sol1": "a", "sol2": "b", "label": 0}\n', "'goal' is undefined"),
        ("piqa", '{"goal": "a", "sol1": "b", "sol2": "c", "label": null}\n', "TypeError: .* not NoneType"),
        ("piqa", '{"goal": "a", "sol1": null, "sol2": "c", "label": 0}\n', "TypeError: 'NoneType' object"),
        ("squad_completion", '{"question": "a"}\n', "row 1 has no field 'context'"),
    ],
)
def test_rows_that_cannot_be_read_name_their_task_and_what_is_missing(demo, tmp_path, name, rows, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(rows)
    with (
        lm_eval_tasks.open_task(name, None, {"validation": str(file)}, None) as task,
        pytest.raises(UserError, match=rf"evaluate\.tasks\.{name}\.data_files: .*{message}"),
    ):
        lm_eval_run.score_task(*demo, task, fewshot=None, limit=2, batch_size=2)


TASK_FILE = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: OUTPUT
doc_to_text: "TEXT"
doc_to_choice: [a, b]
doc_to_target: label
metric_list: [{metric: acc}]
"""
ROWS = '{"text": "one", "label": 0}\n{"text": "two", "label": 1}\n'
RIGHT = {"OUTPUT": "multiple_choice", "TEXT": "{{text}}"}


@pytest.mark.parametrize(
    ("change", "rows", "message"),
    [
        ({}, "no JSON\n", "ArrowInvalid: JSON parse error"),
        ({}, "", "(StopIteration|SchemaInferenceError)|Instruction .train. corresponds to no data"),
        ({}, '{"label": 0}\n', "'text' is undefined"),
        ({}, '{"text": "one", "label": 7}\n', "."),
        ({}, '{"text": "one", "label": null}\n', "."),
        ({"TEXT": "{{text"}, ROWS, "TemplateSyntaxError"),
        ({"TEXT": "{{text | no_such_filter}}"}, ROWS, "No filter named"),
        ({"TEXT": "{{label / 0}}"}, ROWS, "ZeroDivisionError"),
        ({"OUTPUT": "no_such_kind"}, ROWS, "."),
        ({"OUTPUT": "loglikelihood_rolling"}, ROWS, "."),
    ],
)
def test_a_task_of_the_users_that_cannot_be_run_is_named(demo, tmp_path, change, rows, message):
    (tmp_path / "rows.jsonl").write_text(rows)
    text = TASK_FILE.replace("ROWS", str(tmp_path / "rows.jsonl"))
    for name, value in {**RIGHT, **change}.items():
        text = text.replace(name, value)
    (tmp_path / "mine.yaml").write_text(text)
    with (
        pytest.raises(UserError, match=rf"evaluate\.tasks\.mine\.include: lm-eval cannot read the rows .*({message})"),
        lm_eval_tasks.open_task("mine", str(tmp_path), {}, None) as task,
    ):
        lm_eval_run.score_task(*demo, task, fewshot=None, limit=2, batch_size=2)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_no_room_for_a_copy_of_the_rows_is_not_called_unreadable(demo, tmp_path, monkeypatch, number):
    def fails(*args):
        error = DatasetGenerationError("An error occurred while generating the dataset")
        raise error from OSError(number, os.strerror(number))

    (tmp_path / "rows.jsonl").write_text(ROWS)
    text = TASK_FILE.replace("ROWS", str(tmp_path / "rows.jsonl"))
    (tmp_path / "mine.yaml").write_text(text.replace("OUTPUT", "multiple_choice").replace("TEXT", "{{text}}"))
    monkeypatch.setattr(lm_eval_run, "_run", fails)
    with (
        lm_eval_tasks.open_task("mine", str(tmp_path), {}, None) as task,
        pytest.raises(UserError, match=rf"{os.strerror(number)}, while `datasets` copied .* then run the same again"),
    ):
        lm_eval_run.score_task(*demo, task, fewshot=None, limit=2, batch_size=2)


def test_the_number_of_examples_is_the_stock_tasks_unless_another_is_asked_for(demo, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "What is 1 + 1?", "answer": "It is 2. #### 2"}\n' * 6)
    data_files = {"train": str(file), "test": str(file)}
    for asked, used in [(None, 5), (0, 0), (2, 2)]:
        with lm_eval_tasks.open_task("gsm8k", None, data_files, asked) as task:
            one = lm_eval_run.score_task(*demo, task, fewshot=asked, limit=2, batch_size=2)
        assert one["shots"] == [used]
        assert set(one["scores"]) == {
            f"exact_match_{kind}{error}" for kind in ("strict-match", "flexible-extract") for error in ("", "_stderr")
        }


HELDOUT = {"source": "x.jsonl", "samples": 4, "length": 8}


def test_a_suite_is_its_tasks_and_a_tasks_own_entry_goes_before_the_suites():
    listed = Evaluate(tasks=["mergemoe-seven", "boolq"], heldout=HELDOUT).tasks
    assert list(listed) == [*SUITES["mergemoe-seven"], "boolq"]
    mapped = Evaluate(tasks={"mergemoe-seven": {"limit": 40}, "piqa": {"limit": 3}}, heldout=HELDOUT).tasks
    assert {name: task.limit for name, task in mapped.items()} == dict.fromkeys(SUITES["mergemoe-seven"], 40) | {
        "piqa": 3
    }
    assert Evaluate(tasks={"mcsmoe": None}, heldout=HELDOUT).tasks.keys() == set(SUITES["mcsmoe"])


@pytest.mark.parametrize("name", sorted({name for names in SUITES.values() for name in names}))
def test_lm_eval_has_every_task_of_the_suites(name):
    assert lm_eval_tasks.find_stock_file(name) is not None


def test_a_task_is_found_however_its_file_writes_the_name():
    for name in ("mmlu_anatomy", "gsm8k", "squad_completion"):  # "task": "x", task: x, and a Python class
        assert name in lm_eval_tasks.find_stock_file(name).read_text()
    for name in ("mmlu", "anatomy", "no_such_task"):
        assert lm_eval_tasks.find_stock_file(name) is None
