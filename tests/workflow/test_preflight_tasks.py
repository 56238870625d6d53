"""A task of one's own: its folder, its name, and code that it names."""

import pytest

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
    (tmp_path / "plain.yaml").write_text(PLAIN)
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
