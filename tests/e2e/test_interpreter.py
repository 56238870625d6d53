"""Jobs run with the Python that runs Snakemake, wherever it lies, and nothing reruns because it lies elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]
LAYOUT = "results/layout/tiny.json"


def snakemake(project, program, *args):
    """Run a `snakemake` with an environment in which no shell has activated anything."""
    environment = {key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    environment |= {"PATH": "/usr/bin:/bin", "HOME": str(project)}
    return subprocess.run(
        [program, "--cores", "1", *args], cwd=project, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def here():
    """The script `snakemake` of this environment."""
    return Path(sys.executable).with_name("snakemake")


def test_jobs_find_the_packages_although_no_environment_is_activated(finished, here):
    (finished / LAYOUT).unlink()
    done = snakemake(finished, here, LAYOUT)
    assert done.returncode == 0, done.stderr
    log = (finished / "logs/layout/tiny.log").read_text()
    assert "ran in: " in log and (finished / LAYOUT).is_file()


def test_an_interpreter_that_lies_elsewhere_reruns_nothing(finished, here, tmp_path):
    elsewhere = tmp_path / "venv"
    elsewhere.symlink_to(here.parent.parent)
    program = tmp_path / "snakemake"
    program.write_text(f"#!{elsewhere}/bin/python\nimport sys\nfrom snakemake.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    (finished / LAYOUT).unlink()
    made = snakemake(finished, program, LAYOUT, "--printshellcmds")
    assert made.returncode == 0, made.stderr
    assert "python -m stages.layout" in made.stdout + made.stderr
    for which in (here, program):
        planned = snakemake(finished, which, "--dry-run")
        assert planned.returncode == 0, planned.stderr
        assert "Nothing to be done" in planned.stdout + planned.stderr
