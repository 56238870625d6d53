"""The seven tasks of the paper on files of this machine: lm-eval's own splits as JSON lines."""

from pathlib import Path

FILES = {  # {task: {split: its file}}
    "winogrande": {"validation": "winogrande_xl_validation"},
    "arc_easy": {"test": "arc_easy_test"},
    "arc_challenge": {"test": "arc_challenge_test"},
    "hellaswag": {"validation": "hellaswag_validation"},
    "piqa": {"validation": "piqa_validation"},
    "squad_completion": {"validation": "squad_v1.1_dev_subset"},
    "mrpc": {"test": "mrpc_test"},
}


def data_files(folder: str | Path) -> dict[str, dict[str, str]]:
    """Return {task: its `data_files` in params.yaml} for the files in a folder."""
    return {task: {split: f"{folder}/{name}.jsonl.gz" for split, name in one.items()} for task, one in FILES.items()}
