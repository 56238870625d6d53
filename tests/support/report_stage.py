"""Run the stage report on a synthetic study."""

import json
import subprocess
import sys

import synthetic


def report(results, out, cfg=synthetic.CFG):
    arguments = {
        "--cfg": json.dumps(cfg),
        "--code": "0" * 64,
        "--results": results,
        "--metrics": out / "metrics.json",
        "--quality": out / "quality.csv",
        "--errors": out / "errors.csv",
        "--page": out / "report/index.html",
        "--cards": out / "cards",
        "--out": out / "report/provenance.json",
    }
    command = [sys.executable, "-m", "stages.report", *(str(word) for pair in arguments.items() for word in pair)]
    return subprocess.run(command, capture_output=True, text=True)
