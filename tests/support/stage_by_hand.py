"""Run a stage of one layer in a folder, as its rule does, or a program that ends it half way."""

import json
import os
import subprocess
import sys

from tiny_project import ROOT


class StageByHand:
    """A stage's parameters and inputs; each run is a process of its own."""

    def __init__(self, folder, layer, cfg, inputs):
        """Take the working folder, the number of the layer, the parameters and {option: path}."""
        named = [part for name, path in inputs.items() for part in (f"--{name}", str(path))]
        options = ["--cfg", json.dumps(cfg), "--code", "0", "--layer", str(layer), *named, "--device", "cpu"]
        self.folder, self.options = folder, options

    def run(self, *program, out):
        """Run Python with a program and the options, and return how it ended."""
        command = [sys.executable, *program, *self.options, "--out", out]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)
