"""What a folder of task files leads lm-eval to read and to run, found before it does."""

import json
import os

import datasets
import pytest
from lm_eval.api.registry import get_metric, metric_registry

from mergemoe.errors import UserError
from mergemoe.evaluation.lm_eval_tasks import open_task
from mergemoe.evaluation.task_folder import METRICS, read_folder

CODE = "process_docs: !function other.f\n"
WAYS = {
    "an escape in the tag": {"t.yaml": "task: t\nprocess_docs: !%66unction other.f\n"},
    "a handle": {"t.yaml": "%TAG !e! !func\n---\ntask: t\nprocess_docs: !e!tion other.f\n"},
    "a verbatim tag": {"t.yaml": "task: t\nprocess_docs: !<!function> other.f\n"},
    "a quoted key": {"t.yaml": "task: t\n'class': other.f\n"},
    "an included text file": {"t.yaml": "task: t\ninclude: o.txt\n", "o.txt": CODE},
    "an included file in capitals": {"t.yaml": "task: t\ninclude: [o.YAML]\n", "o.YAML": CODE},
    "an included file of an included one": {
        "t.yaml": "task: t\ninclude: a\n",
        "a": "include: below/b",
        "below/b": CODE,
    },
    "a file above the folder": {"t.yaml": "task: t\ninclude: ../o.yaml\n", "../o.yaml": CODE},
    "UTF-16": {"t.yaml": "task: t\ninclude: o.yaml\n", "o.yaml": CODE.encode("utf-16")},
    "a key that is replaced": {"t.yaml": f"task: t\n{CODE}process_docs: null\n"},
    "a Python name": {"t.yaml": "task: t\nx: !!python/name:os.system ''\n"},
    "a script as a metric": {"t.yaml": "task: t\nmetric_list: [{metric: other.py}]\n"},
    "a metric of the hub": {"t.yaml": "task: t\nmetric_list: [{metric: acc, hf_evaluate: true}]\n"},
    "a metric in a group": {"t.yaml": "group: t\ntask: [{task: u, metric_list: [{metric: [own]}]}]\n"},
}
UNREAD = {
    "no YAML": ("task: [", "cannot be read as YAML"),
    "nesting": ("task: " + "[" * 100_000, "nests deeper than 100 levels"),
    "a number as an include": ("include: 3", "`include` has something that is not a path"),
    "itself": ("include: t.yaml", "is included twice"),
    "a missing file": ("include: none.yaml", "none.yaml, which is no file"),
    "a pattern": ("dataset_kwargs: {data_files: 'data/*.jsonl'}", "not the path of one file"),
    "an address": ("dataset_kwargs: {data_files: {test: ['https://x.org/a.jsonl']}}", "not the path of one file"),
    "a folder of data": ("dataset_kwargs: {data_dir: data}", "dataset_kwargs.data_dir.* not listed"),
    "a data set on this machine": ("dataset_path: ./", "`dataset_path: ./` is on this machine"),
}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("files", WAYS.values(), ids=WAYS)
def test_code_is_found_however_it_is_written(tmp_path, files):
    write(tmp_path / "tasks", {"other.py": "raise SystemExit", **files})
    assert any(file.code for file in read_folder(tmp_path / "tasks"))


def test_code_below_a_linked_folder_is_found(tmp_path):
    write(tmp_path, {"tasks/t.yaml": "task: t\ninclude: sub/o.yaml\n", "elsewhere/o.yaml": CODE})
    (tmp_path / "tasks/sub").symlink_to(tmp_path / "elsewhere")
    (file,) = read_folder(tmp_path / "tasks")
    assert file.code and tmp_path / "elsewhere/o.yaml" in file.read


def test_a_plain_folder_is_no_code(tmp_path):
    text = "task: t\nx: &a [!!str 1, ! y, 2.0, 2020-01-01, *a]\nmetric_list: [{metric: acc}]\ny: {class: z}\n"
    write(tmp_path, {"t.yaml": text, "list.yaml": "[1]", "empty.yaml": ""})
    assert not any(file.code for file in read_folder(tmp_path))


@pytest.mark.parametrize(("text", "words"), UNREAD.values(), ids=UNREAD)
def test_what_cannot_be_followed_is_refused(tmp_path, text, words):
    write(tmp_path, {"t.yaml": text})
    with pytest.raises(UserError, match=words):
        read_folder(tmp_path)


def test_the_known_metrics_are_those_of_lm_eval():
    get_metric("acc")  # fills the registry
    assert set(METRICS) <= set(metric_registry)


def test_changed_data_of_the_same_time_are_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "tasks" / "t.jsonl"
    text = (
        f"task: t\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: loglikelihood\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\nmetric_list: [{metric: perplexity}]\n"
    )
    for word in ("old", "new"):
        write(tmp_path, {"tasks/t.yaml": text, "tasks/t.jsonl": json.dumps({"text": word}) + "\n"})
        os.utime(data, (1, 1))
        with open_task("t", str(tmp_path / "tasks"), {}, None) as task:
            (made,) = task.manager.load(["t"])["tasks"].values()
            assert [row["text"] for row in made.test_docs()] == [word]
    assert not (tmp_path / "cache").exists()
