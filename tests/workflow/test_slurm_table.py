"""What jobs ask a cluster for: their needs, more on each retry, never above the limits; and the plan says the same."""

import re
import shutil
from collections import Counter

import pytest
import yaml
from tiny_project import ROOT, snakemake

from mergemoe.artifacts.stages import recorded_stages
from mergemoe.errors import UserError
from mergemoe.workflow.config.params import read_params
from mergemoe.workflow.planning import jobs, plan, slurm, slurm_table
from mergemoe.workflow.planning.resources import job_resources

NAMES = {
    "model": "demo",
    "calibrate": "mixed",
    "cluster": "half",
    "solve": "mergemoe",
    "solution": "mergemoe",
    "layer": "001",
}


@pytest.fixture(scope="module")
def demo():
    return read_params(yaml.safe_load((ROOT / "params.yaml").read_text()))


@pytest.fixture
def limited(tmp_path, monkeypatch):
    """A profile whose partitions.yaml a test writes."""

    def write(text):
        shutil.copytree(ROOT / "profiles" / "slurm", tmp_path / "slurm", dirs_exist_ok=True)
        (tmp_path / "slurm" / "partitions.yaml").write_text(text)
        slurm.read_partitions.cache_clear()

    monkeypatch.setattr(slurm, "PROFILE", tmp_path / "slurm")
    yield write
    slurm.read_partitions.cache_clear()


LIMITS = """
partitions:
  cpu: {max_runtime: 7, max_mem_mb: 1500}
  gpu: {max_runtime: 1000, max_mem_mb: 90000, max_gpu: 1}
gpu_mem_mb: 3000
gflops: {cpu: 1, gpu: 100}
"""


def test_each_attempt_asks_for_once_more_up_to_the_limits_of_its_partitions(demo, limited):
    limited(LIMITS)
    first, second, tenth = (slurm.job_request(demo, "solve", NAMES, attempt) for attempt in (1, 2, 10))
    need = job_resources.job_need(demo, "solve", NAMES)
    assert first.mem_mb == need.memory + slurm.JOB_MB
    assert second.mem_mb == 2 * first.mem_mb
    assert (first.gpu_mem_mb, tenth.gpu_mem_mb) == (need.gpu, 3000)
    assert first.runtime < second.runtime <= 2 * first.runtime
    on_a_cpu = slurm.job_request(demo, "assemble", NAMES, 10)
    assert (on_a_cpu.mem_mb, on_a_cpu.runtime) == (1500, 7)
    assert slurm.job_request(demo, "solve", NAMES, 1000).mem_mb == 90000


def test_time_is_asked_for_files_and_for_what_is_computed(demo, limited):
    limited(LIMITS.replace("max_runtime: 7", "max_runtime: 1000"))
    still = job_resources.Need(memory=1, gpu=0, disk=0, read=0, flops=0.0)
    assert slurm.job_minutes(still, gpu=False) == slurm.START
    assert slurm.job_minutes(still._replace(read=6000, disk=12000), gpu=False) == slurm.START + 3
    assert slurm.job_minutes(still._replace(flops=60e9), gpu=False) == slurm.START + slurm.MARGIN
    assert slurm.job_minutes(still._replace(flops=60e9), gpu=True) == slurm.START + slurm.MARGIN / 100


def test_layers_that_share_a_job_share_the_time_that_it_may_ask_for(demo, limited):
    limited(LIMITS.replace("max_runtime: 7", "max_runtime: 16").replace("cpu: 1", "cpu: 0.001"))
    assert slurm.layers_per_job("cluster") == 8
    assert slurm.job_request(demo, "cluster", NAMES).runtime == 2
    assert slurm.job_request(demo, "budget", NAMES, 1000).runtime == 16
    assert "8 layers share a job: lower `group-components`" in slurm_table.slurm_text(demo)


def test_a_partition_without_a_limit_caps_nothing(demo, limited):
    limited(LIMITS.replace("max_mem_mb: 1500", "max_nodes: 2"))
    assert slurm.job_request(demo, "cluster", NAMES, 1000).mem_mb > 500_000


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("max_runtime: 7", "max_runtime: 1-00:00:00", r"partitions\.cpu\.max_runtime: .*integer.*1-00:00:00"),
        ("gpu_mem_mb: 3000", "", "gpu_mem_mb: Field required"),
        ("gpu: 100", "gpu: 0", r"gflops\.gpu: .*greater than 0"),
        ("partitions:", "partitions: [", "cannot be read"),
    ],
)
def test_a_mistake_in_partitions_yaml_is_told_by_its_place(demo, limited, old, new, told):
    limited(LIMITS.replace(old, new))
    with pytest.raises(UserError, match=f"partitions.yaml .*(\n.*)*{told}"):
        slurm.job_request(demo, "solve", NAMES)


def test_the_plan_has_every_job_and_names_what_would_not_fit(demo, limited, monkeypatch):
    monkeypatch.setattr(job_resources, "cuda_libraries", lambda: 0)  # whatever build of torch is installed
    limited(LIMITS.replace("max_mem_mb: 90000", "max_mem_mb: 900"))
    text = slurm_table.slurm_text(demo)
    assert re.search(r"^capture +1 +1  GPU +900 MB", text, re.MULTILINE)
    assert re.search(r"^  solve demo/mixed/half/mergemoe, layers 0-3: needs [\d,]+ MB of memory", text, re.MULTILINE)
    limited(LIMITS.replace("max_runtime: 7", "max_runtime: 700"))
    assert slurm_table.slurm_text(demo).endswith("every job fits into the limits of partitions.yaml")


def test_a_budget_has_curves_of_the_layers_in_its_range():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["cluster"]["spent"] = {"by": "selection", "share": 0.5, "layers": "1-2"}
    params["solve"]["sized"] = {"method": "select", "width": "auto"}
    params["runs"].append(["demo", "mixed", "spent", "sized"])
    counted = plan.count_jobs(read_params(params))
    stages = ("profile", "curve", "budget", "cluster", "solve", "refine", "assemble")
    assert {stage: counted[stage] for stage in stages} == {
        "profile": 4,
        "curve": 2,
        "budget": 1,
        "cluster": 16,
        "solve": 20,
        "refine": 4,
        "assemble": 6,
    }
    assert list(counted) == [stage.name for stage in recorded_stages()]


@pytest.mark.workflow
def test_jobs_ask_snakemake_for_what_the_plan_says(finished, monkeypatch):
    monkeypatch.chdir(finished)
    params = read_params(yaml.safe_load((finished / "params.yaml").read_text()))
    dry = snakemake(finished, "--dry-run", "--forceall").stdout
    asked = re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", dry, re.MULTILINE)
    told = Counter(
        (rule, *(int(re.search(rf"\b{key}=(\d+)", text)[1]) for key in slurm.Request._fields))
        for rule, text in asked
        if rule != "all"
    )
    assert told == Counter((stage, *slurm.job_request(params, stage, names)) for stage, names in jobs.every_job(params))
