"""Check the keys of a task file that lm-eval would refuse only when the task is run, after everything else."""

from typing import Any

from mergemoe.errors import UserError, shown
from mergemoe.evaluation.task_folder import TaskFile

# Those of lm-eval 0.4.13.
KEYS = """
    task task_alias tag custom_dataset dataset_path dataset_name dataset_kwargs training_split validation_split
    test_split fewshot_split process_docs doc_to_text doc_to_target doc_to_image doc_to_audio unsafe_code doc_to_choice
    process_results use_prompt description target_delimiter fewshot_delimiter fewshot_config num_fewshot metric_list
    output_type generation_kwargs repeats filter_list should_decontaminate doc_to_decontamination_query gen_prefix
    metadata
""".split()  # noqa: SIM905
OUTPUT_TYPES = ("loglikelihood", "loglikelihood_rolling", "generate_until", "multiple_choice")


def check_task_keys(file: TaskFile) -> None:
    """Check the keys of one task, those of what it includes among them.

    Raises:
        UserError: lm-eval has no such key or kind of output, or there is no split to score.
    """
    content = file.content
    if "class" in content or "task" not in content or "group" in content:
        return
    if unknown := [key for key in content if key not in KEYS]:
        raise UserError(f"{file.path}: lm-eval has no key {shown(unknown[0])} for a task. Correct or remove it")
    kind = content.get("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        raise UserError(f"{file.path}: `output_type: {shown(kind)}` is none of {', '.join(OUTPUT_TYPES)}. Correct it")
    scored = content.get("test_split") or content.get("validation_split")
    if "dataset_path" in content and not scored and "custom_dataset" not in content:
        raise UserError(
            f"{file.path}: has neither `test_split` nor `validation_split`, so lm-eval knows no rows to score. Name "
            "the split"
        )
    splits = _splits(content)
    if scored and splits and scored not in splits:
        raise UserError(
            f"{file.path}: the split {shown(scored)} is scored, but `data_files` has {', '.join(map(str, splits))}. "
            "Name its file there, or score another split"
        )


def _splits(content: dict[Any, Any]) -> list[Any]:
    """Return the splits of local files; none if `data_files` does not tell."""
    settings = content.get("dataset_kwargs")
    files = settings.get("data_files") if isinstance(settings, dict) else None
    if isinstance(files, dict):
        return list(files)
    return ["train"] if files else []  # as `datasets` calls it
