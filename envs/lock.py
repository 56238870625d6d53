"""Write envs/cpu.txt, cuda.txt, dev.txt and conda.yaml from pyproject.toml and pins.txt: `make lock`.

pip resolves all packages once in a temporary environment and installs nothing. The index must have torch's CUDA build;
the CPU build needs a subset of its packages.
"""

import json
import re
import subprocess
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path

ENVS = Path(__file__).parent
EXTRAS = ".[workflow,eval,report,s3,slurm]"
CUDA_ONLY = re.compile(r"(nvidia|cuda)-.*|triton")

CPU = """\
# Locked by `make lock`: the packages of a run. The line for torch installs the CUDA build from the default index, or a
# CPU build with TORCH_INDEX (see Makefile)."""
CUDA = """\
# Locked by `make lock`: the packages that torch's CUDA build adds on Linux.
-r cpu.txt"""
DEV = """\
# Locked by `make lock`: the packages that tests and checks add.
-r cpu.txt"""

CONDA = """\
# Written by `make lock`: cpu.txt for `snakemake --software-deployment-method conda`. That way is not tested.
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip
  - pip:"""


def resolve(pip: list[str], *what: str) -> dict[str, str]:
    """Return {package: version} of all packages that `what` needs; versions are without the build's local suffix."""
    command = [*pip, "install", "--dry-run", "--ignore-installed", "--report", "-", "--quiet"]
    command += ["--constraint", str(ENVS / "pins.txt"), *what]
    report = json.loads(subprocess.run(command, cwd=ENVS.parent, stdout=subprocess.PIPE, check=True).stdout)
    found = {p["metadata"]["name"]: p["metadata"]["version"].split("+")[0] for p in report["install"]}
    return {re.sub("[-_.]+", "-", name).lower(): version for name, version in found.items()}


def write(name: str, head: str, versions: dict[str, str], names: Iterable[str]) -> None:
    """Write one lock file with sorted lines."""
    lines = [head, *(f"{package}=={versions[package]}" for package in sorted(names))]
    (ENVS / name).write_text("\n".join(lines) + "\n")


def write_conda() -> None:
    """Write conda.yaml: what cpu.txt says."""
    pins = [line for line in (ENVS / "cpu.txt").read_text().splitlines() if not line.startswith("#")]
    (ENVS / "conda.yaml").write_text("\n".join([CONDA, *(f"      - {pin}" for pin in pins)]) + "\n")


def main() -> None:
    """Resolve with and without the developer tools, and write the three files."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)  # --group needs pip 25.1
        run = resolve(pip, EXTRAS)
        versions = resolve(pip, EXTRAS, "--group", "dev")
    if changed := {name for name in run if run[name] != versions[name]}:
        raise SystemExit(
            f"the developer tools change versions that a run needs: {sorted(changed)}. Pin them in pins.txt"
        )
    cuda = {name for name in run if CUDA_ONLY.fullmatch(name)}
    if not cuda:
        raise SystemExit("torch resolved to a CPU build, so cuda.txt would be empty. Use the default index")
    write("cpu.txt", CPU, run, run.keys() - cuda - {"mergemoe"})
    write("cuda.txt", CUDA, run, cuda)
    write_conda()
    write("dev.txt", DEV, versions, versions.keys() - run.keys())


if __name__ == "__main__":
    main()
