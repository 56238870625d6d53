"""A params.yaml that is valid, as a dictionary."""

import yaml
from tiny_project import ROOT

GOOD = yaml.safe_load((ROOT / "params.yaml").read_text())
