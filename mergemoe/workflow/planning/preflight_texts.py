"""Draw every local text once with each model's tokenizer before the first job."""

import sys
from pathlib import Path

from mergemoe.calibration import text_rows, token_sequences
from mergemoe.calibration.tokenizer import open_tokenizer
from mergemoe.calibration.vocabulary import check_rows, check_vocabulary
from mergemoe.checkpoints import config_keys, model_folder
from mergemoe.errors import UserError
from mergemoe.evaluation.task_folder import read_folder
from mergemoe.models import supported
from mergemoe.workflow.config.params import Params


def check_texts(params: Params) -> None:
    """Draw every local text once with each model's tokenizer, if transformers knows the model, and read task rows.

    Raises:
        UserError: if it does not, if a text is too short, or if a row is no JSON object or lacks its field.
    """
    for model, calibrate in sorted({(run.model, run.calibrate) for run in params.all_runs()}):
        folder = params.model[model].folder()
        try:
            supported.check_architecture(folder)
            tokenizer = open_tokenizer(folder)
        except UserError as error:
            raise UserError(f"model.{model}: {error}") from None
        stated = config_keys.config_values(model_folder.read_config(folder), "vocabulary")
        rows = max(stated, default=sys.maxsize)  # a config.json may leave it to transformers; the job knows it
        try:
            check_vocabulary(tokenizer, rows, _task_files(params))
            if params.evaluate.tasks and tokenizer.pad_token_id is not None:  # lm-eval pads batches with it
                check_rows(tokenizer, tokenizer.pad_token_id, rows)
        except UserError as error:
            raise UserError(f"model.{model}: {error}") from None
        chosen = params.calibrate[calibrate]
        token_sequences.check_holdout(chosen.samples, chosen.holdout)
        for name, wanted in {f"calibrate.{calibrate}": chosen, "evaluate.heldout": params.evaluate.heldout}.items():
            if wanted.source:
                try:
                    drawn = wanted.model_dump(exclude={"holdout"})
                    token_sequences.sequences_from_source(tokenizer, rows, **drawn)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from None
    for task, chosen in params.evaluate.tasks.items():
        for split, path in chosen.data_files.items():
            _check_rows_of_task(f"{task}.data_files.{split}", path)
        for file in read_folder(Path(chosen.include)) if chosen.include else ():
            for path in file.data_files():
                if path.endswith((".jsonl", ".jsonl.gz")):
                    _check_rows_of_task(f"{task}.include", path)


def _check_rows_of_task(key: str, path: str) -> None:
    """Check that every row of a task's file is a JSON object, and that there are rows."""
    try:
        number = 0
        for number, text in text_rows.read_json_rows(path):
            text_rows.parse_row(path, number, text)
        if not number:
            raise UserError(f"{path} has no rows. Bring the file again, or name another")
    except UserError as error:
        raise UserError(f"evaluate.tasks.{key}: {error}") from None


def _task_files(params: Params) -> list[Path]:
    """Return the local files of all tasks: task files with their data, and rows for tasks of lm-eval."""
    found = []
    for task in params.evaluate.tasks.values():
        inside = Path(task.include).rglob("*") if task.include else ()
        found += [*map(Path, task.data_files.values()), *(path for path in inside if path.is_file())]
    return found
