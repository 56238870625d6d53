"""A task of one's own: its folder, its name, and code that it names."""

import pytest
from lm_eval.tasks import TaskManager
from tiny_project import ROOT

from mergemoe.errors import UserError
from mergemoe.workflow.config.evaluate import Task
from mergemoe.workflow.planning.preflight_tasks import check_task

PLAIN = "task: mine\ndoc_to_text: '{{text}}'\n"
CODE = {
    "a function": PLAIN + "process_docs: !function mine.docs\n",
    "a function in a list": PLAIN + "metric_list:\n  - metric: !function mine.score\n",
    "a class": "task: mine\nclass: mine.Task\n",
}


def test_a_folder_of_plain_task_files_does(tmp_path):
    (tmp_path / "mine.yaml").write_text(PLAIN)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "nowhere.yaml").symlink_to(tmp_path / "deleted")
    check_task("mine", Task(include=str(tmp_path)))


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
@pytest.mark.parametrize("place", ["mine.yaml", "below/mine.yaml", "other.yml"])
def test_code_needs_trust(tmp_path, text, place):
    (tmp_path / "plain.yaml").write_text(PLAIN if place == "other.yml" else "task: other\n")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(text)
    with pytest.raises(UserError, match=f"evaluate.tasks.mine: .*{place} names Python code.*`trust_code: true`"):
        check_task("mine", Task(include=str(tmp_path)))
    check_task("mine", Task(include=str(tmp_path), trust_code=True))


def test_a_folder_without_the_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        check_task("mine", Task(include=str(tmp_path / "none")))
    (tmp_path / "mine.yaml").write_text("task: other\n")
    with pytest.raises(UserError, match="no .*yaml file in .* has `task: mine`"):
        check_task("mine", Task(include=str(tmp_path)))


OUTSIDE = {
    "a template": "include: ../other/template\n",
    "a link": "include: link\n",
    "data": "dataset_kwargs: {data_files: {test: [FOLDER/other/data.jsonl]}}\n",
    "data of a member of a group": "x: [{dataset_kwargs: {data_files: FOLDER/other/data.jsonl}}]\n",
    "a prompt": "use_prompt: 'FOLDER/other/prompts.yaml:first'\n",
}


@pytest.mark.parametrize("text", OUTSIDE.values(), ids=OUTSIDE)
def test_files_outside_the_folder_are_refused_with_trust_too(tmp_path, text):
    for name in ("template", "data.jsonl", "prompts.yaml", "link_target"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_text("x: 1\n")
    (tmp_path / "tasks" / "sub").mkdir(parents=True)
    (tmp_path / "tasks" / "sub" / "link").symlink_to(tmp_path / "other")
    text = text.replace("FOLDER", str(tmp_path)).replace("include: link", "include: sub/link/template")
    (tmp_path / "tasks" / "mine.yaml").write_text(PLAIN + text)
    for trust in (False, True):
        with pytest.raises(UserError, match=r"mine.yaml reads .*other/.*, which is no file inside"):
            check_task("mine", Task(include=str(tmp_path / "tasks"), trust_code=trust))


def test_a_linked_file_of_the_folder_does(tmp_path):
    """Its content goes into the provenance, unlike that of a linked folder's files."""
    (tmp_path / "template").write_text("repeats: 1\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "link").symlink_to(tmp_path / "template")
    (tmp_path / "tasks" / "mine.yaml").write_text(PLAIN + "include: link\n")
    check_task("mine", Task(include=str(tmp_path / "tasks")))


def test_the_demo_tasks_do(monkeypatch):
    monkeypatch.chdir(ROOT)
    check_task("blimp", Task(include="data/blimp"))


FORMS = {
    "a comment behind": "task: mine  # of my own\n",
    "a quoted key": '"task": mine\n',
    "a blank before the colon": "task : mine\n",
    "flow style": "{task: mine, doc_to_text: x}\n",
    "a byte order mark": "\ufefftask: mine\n",
    "an anchor": "task: &name mine\ntask_alias: *name\n",
    "a folded text": "task: >-\n  mine\n",
    "a group": "group: mine\ntask: [first_member]  # a comment\n",
    "a group with a task's name": "group: other\ntask: mine\n",
    "a tag": "task: other\ntag: mine\n",
    "tags": "task: other\ntag: [first, mine]\n",
    "a tag of a group": "group: other\ntask: [third]\ntag: mine\n",
    "a class": "task: mine\nclass: own.Task\n",
    "a list": "task: [mine]\n",
    "two documents": "task: mine\n---\ntask: other\n",
    "no mapping": "- task: mine\n",
    "latin 1": "task: mine\ndoc_to_text: caf\xe9\n",
}


@pytest.mark.parametrize("place", ["mine.yaml", "below/mine.yaml", "mine.yml", ".ipynb_checkpoints/mine.yaml"])
@pytest.mark.parametrize("form", FORMS)
def test_a_task_is_one_exactly_if_lm_eval_finds_it(form, place, tmp_path):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "first.yaml").write_text("task: first_member\n")
    path.write_bytes(FORMS[form].encode("latin-1" if form == "latin 1" else "utf-8"))
    found = "mine" in TaskManager(include_path=str(tmp_path), include_defaults=False).all_tasks
    try:
        check_task("mine", Task(include=str(tmp_path), trust_code=True))
        taken = True
    except UserError as error:
        assert str(error).startswith("evaluate.tasks.mine")
        taken = False
    assert taken == found


def test_a_task_that_two_files_define_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text(PLAIN)
    (tmp_path / "mine-old.yaml").write_text(PLAIN)
    with pytest.raises(UserError, match="mine-old.yaml and .*mine.yaml both define mine, and lm-eval takes the first"):
        check_task("mine", Task(include=str(tmp_path)))


def test_files_may_share_a_tag(tmp_path):
    for name in "first", "second":
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ntag: mine\n")
    check_task("mine", Task(include=str(tmp_path)))


GROUPS = {
    "an unknown member": ("task: [a, none]\n", "the group mine joins none, which no"),
    "a member of lm-eval's own": ("task: [arc_easy]\n", "the group mine joins arc_easy, which no"),
    "itself": ("task: [mine]\n", "the group mine joins itself"),
    "itself, through another": ("task: [second]\n", "the group mine joins itself"),
    "a member defined twice": ("task: [b]\n", "both define b, and lm-eval takes the first alone"),
}


@pytest.mark.parametrize("case", GROUPS)
def test_members_of_a_group_are_checked(case, tmp_path):
    text, said = GROUPS[case]
    files = {"a": "task: a\n", "b": "task: b\n", "c": "task: b\n", "second": "group: second\ntask: [mine, a]\n"}
    for name, content in {**files, "mine": f"group: mine\n{text}"}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    with pytest.raises(UserError, match=f"^evaluate.tasks.mine: .*{said}"):
        check_task("mine", Task(include=str(tmp_path)))
    (tmp_path / "mine.yaml").write_text(
        "group: mine\ntask:\n- a\n- task: a\n  alias: A\n- {task: new, dataset_path: json}\n"
    )
    check_task("mine", Task(include=str(tmp_path)))


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """lm-eval sorts the names of all tasks of a folder."""
    (tmp_path / "mine.yaml").write_text(PLAIN)
    (tmp_path / "other.yaml").write_text("task: 3\n")
    with pytest.raises(UserError, match="other.yaml: `task: 3` must be text"):
        check_task("mine", Task(include=str(tmp_path)))
