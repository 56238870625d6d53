"""Remotes: S3 over real HTTP, and captures that are kept out of pushes, though hashed."""

import json
import shutil

import boto3
import pytest
from moto.server import ThreadedMotoServer
from project import change, commit, run

from mergemoe.artifacts.digests import sha256

pytestmark = [pytest.mark.full, pytest.mark.workflow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def without_captures(recorded, tmp_path_factory):
    """A recorded project whose captures are kept out of pushes."""
    project = shutil.copytree(recorded, tmp_path_factory.mktemp("remotes") / "project")
    change(
        project,
        "    outs:\n      - results/capture\n",
        "    outs:\n      - results/capture: {push: false}\n",
        "dvc.yaml",
    )
    run(project, "mergemoe", "record")
    commit(project, "Kept out of pushes")
    return project


@pytest.fixture
def s3(monkeypatch):
    """The address of an S3 server on loopback with an empty bucket."""
    keys = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="artifacts")
    yield f"http://{host}:{port}"
    server.stop()


def test_a_project_travels_by_s3_without_its_captures(without_captures, tmp_path, s3):
    project = shutil.copytree(without_captures, tmp_path / "project")
    run(project, "dvc", "remote", "add", "--default", "store", "s3://artifacts/mine")
    run(project, "dvc", "remote", "modify", "store", "endpointurl", s3)
    commit(project, "A remote")
    run(project, "dvc", "push")
    stored = boto3.client("s3", endpoint_url=s3).list_objects_v2(Bucket="artifacts")["KeyCount"]
    assert stored > 30

    elsewhere = tmp_path / "elsewhere"
    run(tmp_path, "git", "clone", "--quiet", str(project), str(elsewhere))
    run(elsewhere, "mergemoe", "restore", "main")
    assert not (elsewhere / "results/capture").exists()
    for folder in ("models", "scores", "solve", "cards", "report"):
        assert sha256(elsewhere / "results" / folder) == sha256(project / "results" / folder)
    done = run(elsewhere, "snakemake", "--dry-run")
    assert "Nothing to be done" in done.stdout + done.stderr

    # it is hashed all the same: what is computed again must be what was not pushed
    said = run(elsewhere, "mergemoe", "audit", "--rerun").stdout
    assert "not pushed" in said and "verdict: identical. All " in said
    found = json.loads(next((elsewhere / "logs/audit").glob("*.json")).read_text())
    assert found["stages"]["capture"]["kept_out"] == ["results/capture"]
    assert found["stages"]["capture"]["differ"] == []


def test_where_nothing_was_pushed_restore_says_so_and_changes_nothing(without_captures, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    run(tmp_path, "git", "clone", "--quiet", str(without_captures), str(elsewhere))
    refused = run(elsewhere, "mergemoe", "restore", "main", ok=False)
    assert refused.returncode != 0
    assert "results/solve" in refused.stderr and "neither in DVC's cache nor in a remote" in refused.stderr
    assert "results/capture" not in refused.stderr.partition(":")[2].partition("neither in")[0]
    assert not (elsewhere / "results/solve").exists()
