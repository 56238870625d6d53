"""A compressed checkpoint where only torch, transformers and safetensors are installed."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import architectures
import pytest
import torch
from safetensors.torch import load_file

import mergemoe

ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from importlib.util import find_spec
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
assert not any(map(find_spec, ("mergemoe", "accelerate", "h5py", "snakemake", "lm_eval")))
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True, dtype=torch.float32).eval()
ids = torch.arange(3, 27)[None]
with torch.no_grad():
    save_file({"logits": model(ids).logits}, sys.argv[3])
print(model.generate(ids, max_new_tokens=4, do_sample=False).shape)
"""


def needed(*names):
    """The distributions that the named ones need, themselves included."""
    seen, todo = set(), list(names)
    while todo:
        name = re.sub("[-_.]+", "-", todo.pop()).lower()
        if name not in seen:
            seen.add(name)
            try:
                wanted = metadata.requires(name) or ()
            except metadata.PackageNotFoundError:
                continue  # for another system
            todo += [re.match("[A-Za-z0-9._-]+", line)[0] for line in wanted if "extra ==" not in line]
    return seen


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages that has the three, and what they need."""
    folder = tmp_path_factory.mktemp("site")
    for distribution in metadata.distributions():
        if re.sub("[-_.]+", "-", distribution.name).lower() in needed("torch", "transformers", "safetensors"):
            tops = {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}
            for top in tops:
                if not (folder / top).exists():
                    (folder / top).symlink_to(Path(distribution.locate_file(top)))
    return folder


@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("gpt_oss", marks=pytest.mark.full)])
def test_it_loads_and_computes_without_this_package(name, site, tmp_path):
    folder = architectures.save(name, tmp_path / "full")
    model = mergemoe.compress(mergemoe.load(folder, "cpu"), torch.randint(3, 97, (8, 16)), method="average")
    mergemoe.save(model, tmp_path / "compact")
    arguments = [str(path) for path in (site, tmp_path / "compact", tmp_path / "logits.safetensors")]
    command = [sys.executable, "-I", "-S", "-c", ALONE, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = mergemoe.load(tmp_path / "compact", "cpu")(torch.arange(3, 27)[None]).logits
    torch.testing.assert_close(load_file(arguments[2])["logits"], expected, rtol=1e-4, atol=1e-5)
