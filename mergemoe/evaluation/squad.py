"""Run lm-eval's task squad_completion on SQuAD's own rows; its stock data is another set, which only the hub has.

The stock class keeps its prompt limits and its score `contains`: whether the continuation contains the answer. The rows
are built here from `context`, `question` and `answers` of SQuAD v1.1: `text` is the context, a line with the question,
and `Answer:`; `value` is the first answer. So the score does not compare with the score on the stock data (`NOTE`).
"""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.squad_completion.task import SQUADCompletion

from mergemoe.calibration import text_rows
from mergemoe.calibration.row_text import check_text, text_in
from mergemoe.errors import UserError

_WAY_OUT = "Correct the row or delete it"
NOTE = "rows built by mergemoe from SQuAD's (docs/tasks.md), not lm-eval's data"


# A task file in an `include` folder would need this Python, too: lm-eval has no metric `contains` that a file can name.
# It would also leave `data_files`, the suites' entries and the note on the score to every user.
class Completion(SQUADCompletion):
    """The stock task with another data source: `dataset_kwargs: {data_files: {validation: FILE}}`."""

    def __init__(self, config: Mapping[str, Any]):
        settings = {"task": config["task"], "dataset_kwargs": config["dataset_kwargs"]}
        ConfigurableTask.__init__(self, config={**settings, "metadata": {"version": self.VERSION}})

    def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
        """Read the local file."""
        path = dataset_kwargs["data_files"]["validation"]
        rows = text_rows.read_json_rows(path)
        made = [row(path, number, text_rows.parse_row(path, number, text)) for number, text in rows]
        self.dataset: Any = {"validation": Dataset.from_list(made)}

    def aggregation(self) -> Any:
        """Return lm-eval's mean instead of numpy's: the same number, but lm-eval computes its standard error."""
        return {"contains": mean}


def row(path: str, number: int, one: Mapping[str, Any]) -> dict[str, str]:
    """Return a row: `text` is the model's prompt, `value` is the answer that the continuation should contain.

    Args:
        path: the file.
        number: the place of the row, from 1.
        one: a row of SQuAD.

    Raises:
        UserError: a field is missing, or is no text.
    """
    context, question = (text_in(path, number, one, field, _WAY_OUT).strip() for field in ("context", "question"))
    answers = one.get("answers")
    texts = answers.get("text") if isinstance(answers, dict) else None
    if not isinstance(texts, list) or not texts:
        raise UserError(
            f"{path}: row {number}: field 'answers' has no list 'text' with an answer or more. Every row of SQuAD v1.1 "
            "has one. Correct the row or delete it"
        )
    answer = check_text(f"{path}: row {number}: field 'answers.text'", texts[0], _WAY_OUT)
    return {"text": f"{context}\nQuestion: {question}\nAnswer:", "value": answer}
