"""lm-eval's task squad_completion on SQuAD's own rows; its stock data is another set, which only the hub has.

The stock class, its prompt limits and its score stay: `contains`, whether the continuation has the answer's words. The
rows are ours, from `context`, `question` and `answers` of SQuAD v1.1: `text` is the context, a line with the question,
and `Answer:`; `value` is the first answer. So the score does not compare with that of the stock data, and says so.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks.squad_completion.task import SQUADCompletion

NOTE = "rows built by mergemoe from SQuAD's (docs/tasks.md), not lm-eval's data"


# A task file in an `include` folder would need this Python, too: lm-eval has no metric `contains` that a file can name.
# It would also leave `data_files`, the suites' entries and the note on the score to every user.
class Completion(SQUADCompletion):
    """The stock task with another source: `dataset_kwargs: {data_files: {validation: FILE}}`."""

    def __init__(self, config: Mapping[str, Any]):
        settings = {"task": config["task"], "dataset_kwargs": config["dataset_kwargs"]}
        ConfigurableTask.__init__(self, config={**settings, "metadata": {"version": self.VERSION}})

    def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
        """Read the local file."""
        made = [row(one) for one in _lines(dataset_kwargs["data_files"]["validation"])]
        self.dataset: Any = {"validation": Dataset.from_list(made)}

    def aggregation(self) -> Any:
        """Return lm-eval's own mean in place of numpy's: the same number, and one whose standard error it knows."""
        return {"contains": mean}


def row(one: Mapping[str, Any]) -> dict[str, str]:
    """Return the text that a model goes on from, and the words that it should come to."""
    text = f"{one['context'].strip()}\nQuestion: {one['question'].strip()}\nAnswer:"
    return {"text": text, "value": one["answers"]["text"][0]}


def _lines(path: str) -> Iterator[Any]:
    opened: Any = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
