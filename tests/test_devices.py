"""Threads, device and the environment that stages fix before torch is imported."""

import os
import subprocess
import sys

import pytest
import torch
from tiny_project import ROOT

from mergemoe import devices, environment


@pytest.fixture
def restored():
    """Undo what devices.set_up_torch changes in this process."""
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    yield
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@pytest.mark.usefixtures("restored")
def test_start_fixes_threads_and_determinism_and_names_the_device():
    assert devices.set_up_torch(2, "cpu") == torch.device("cpu")
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert devices.set_up_torch(1).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"HF_HUB_OFFLINE": "0"}, "0")])
def test_stages_fix_mkl_and_stay_offline_unless_told_otherwise(given, expected):
    fixed = {"MKL_CBWR", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "OMP_NUM_THREADS"}
    environment = {name: value for name, value in os.environ.items() if name not in fixed}
    code = "import os, stages; print(*(os.environ[k] for k in ('MKL_CBWR', 'OMP_NUM_THREADS', 'HF_HUB_OFFLINE', "
    code += "'HF_DATASETS_OFFLINE')))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**environment, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["AVX2", "1", expected, expected]


def test_a_user_may_choose_the_path_of_mkl_that_is_the_same_on_every_processor():
    code = "import os, stages; print(os.environ['MKL_CBWR'])"
    given = {**os.environ, "MKL_CBWR": "COMPATIBLE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "COMPATIBLE"


@pytest.mark.parametrize(("given", "expected"), [({}, "avx2"), ({"ATEN_CPU_CAPABILITY": "default"}, "default")])
def test_stages_take_the_path_of_avx2_on_every_processor_that_has_it(given, expected):
    kept = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    code = "import os, stages; print(os.environ.get('ATEN_CPU_CAPABILITY'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (expected if environment.has_avx2() or given else "None")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx avx2 bmi2", True),
        ("flags\t\t: fpu avx avx2", True),
        ("flags\t\t: fpu avx avx2_of_another", False),
        ("flags\t\t: fpu avx", False),
        ("Features\t: fp asimd", False),
        ("", False),
    ],
)
def test_avx2_is_a_word_among_the_flags(flags, expected, monkeypatch):
    monkeypatch.setattr(environment, "_cpu_info", lambda: f"processor\t: 0\n{flags}\nbugs\t\t: avx2\n")
    assert environment.has_avx2() is expected
