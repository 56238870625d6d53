"""The lock files are complete, and what is known of their packages is counted as what it is."""

import importlib.util
import sys
from pathlib import Path

import pytest

ENVS = Path("envs")


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("audit", ENVS / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOUND = {"name": "torch", "version": "2.13.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
FLAWED = {"name": "pyyaml", "version": "5.3", "vulns": [{"id": "PYSEC-2021-142", "fix_versions": ["5.4"]}]}


def run(audit, monkeypatch, *answers):
    asked, given = [], iter(answers)
    monkeypatch.setattr(audit, "locked", lambda: ["pyyaml==5.3", "torch==2.13.0"])
    monkeypatch.setattr(audit, "look_up", lambda pins: asked.append(list(pins)) or next(given))
    audit.main()
    return asked


def test_a_known_vulnerability_fails_and_is_named(audit, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="make lock"):
        run(audit, monkeypatch, [SOUND], [FLAWED])
    said = capsys.readouterr().out
    assert "pyyaml 5.3: PYSEC-2021-142, fixed in 5.4" in said
    assert "2 of 2 locked packages audited, 1 known vulnerabilities" in said


def test_packages_that_were_not_looked_up_are_not_called_sound(audit, monkeypatch, capsys):
    assert run(audit, monkeypatch, [SKIPPED]) == [["torch==2.13.0"]]  # the rest would get the same answer
    assert "0 of 2 locked packages audited" in capsys.readouterr().out
    assert run(audit, monkeypatch, [SOUND], [{**SKIPPED, "name": "pyyaml"}])
    assert "1 of 2 locked packages audited, 0 known vulnerabilities; pyyaml: Dependency" in capsys.readouterr().out


def test_an_audit_that_does_not_run_audits_nothing(audit, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    (found,) = audit.look_up(["torch==2.13.0"])
    assert "vulns" not in found


def test_every_locked_package_is_locked_once(audit):
    names = [pin.partition("==")[0] for pin in audit.locked()]
    assert len(names) == len(set(names)) and {"torch", "pytest", "triton"} <= set(names)
