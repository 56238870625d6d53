"""Print a digest per stage under settings of the arithmetic, with the processor's name.

python benchmarks/portability.py                       # this processor
python benchmarks/portability.py --cpu Haswell-noTSX   # an older one, emulated by qemu-user (`qemu-x86_64 -cpu help`)
python benchmarks/portability.py table                 # reads benchmarks/results/portability.json, which has all rows

Where rows of two processors have one digest, the setting's bits travel. Seconds are those of one thread.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "portability.json"
SETTINGS = {
    "MKL AVX2, ATen AVX2": {"MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "MKL AVX2, ATen as it likes": {"MKL_CBWR": "AVX2"},
    "MKL COMPATIBLE, ATen AVX2": {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "avx2"},
    "nothing set": {},
}
FIXED = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
SEQUENCES, LENGTH = 8, 32
METHODS: dict[str, dict[str, Any]] = {
    "mergemoe": {"method": "mergemoe"},
    "select": {"method": "select"},
    "select+refine": {"method": "select", "refine": {"steps": 10, "batch": 96}},
    "gptq": {"method": "average", "quantize": {"by": "gptq", "bits": 4}},
}


def measure() -> dict[str, Any]:
    """Return the digests of this process, and its seconds."""
    import torch

    import mergemoe

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    ids = torch.randint(1, 4096, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    start, found = time.process_time(), dict[str, str]()
    model = mergemoe.load(ROOT / "data/demo-moe", "cpu", torch.float32)
    model.set_experts_implementation("eager")
    with torch.no_grad():
        states = model(ids, output_hidden_states=True)
    found["capture"], found["logits"] = _digest(states.hidden_states), _digest([states.logits])
    for name, chosen in METHODS.items():
        model = mergemoe.load(ROOT / "data/demo-moe", "cpu", torch.float32)
        mergemoe.compress(model, ids, experts=8, layers="1", holdout=0.25, **chosen)
        found[name] = _digest(model.state_dict().values())
    return {"digests": found, "seconds": round(time.process_time() - start, 1)}


def _digest(tensors: Iterable[Any]) -> str:
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()[:12]


def run(cpu: str | None) -> None:
    """Measure every setting in a process of its own, and keep the rows."""
    from mergemoe import environment

    processor = f"{cpu} (emulated)" if cpu else environment.describe_environment()["processor"]
    under = ["qemu-x86_64", "-cpu", cpu] if cpu else []
    kept = {name: value for name, value in os.environ.items() if name not in {"MKL_CBWR", "ATEN_CPU_CAPABILITY"}}
    packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
    for name, setting in SETTINGS.items():
        command = [*under, os.path.realpath(sys.executable), str(Path(__file__).resolve()), "--child"]
        done = subprocess.run(
            command,
            env=kept | FIXED | setting | {"PYTHONPATH": packages},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            text=True,
        )
        rows = _rows()
        rows.setdefault(processor, {})[name] = json.loads(done.stdout.splitlines()[-1])
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print("\n".join(table()))


def _rows() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}


def table() -> Iterator[str]:
    """Yield the lines of a table per setting: a row per processor, with letters for equal digests."""
    rows = _rows()
    for setting in SETTINGS:
        found = {processor: row[setting] for processor, row in rows.items() if setting in row}
        if not found:
            continue
        stages = list(next(iter(found.values()))["digests"])
        yield f"| {setting} | " + " | ".join([*stages, "seconds"]) + " |"
        yield "|---" * (len(stages) + 2) + "|"
        for processor, row in found.items():
            letters = [_letter(stage, row["digests"][stage], found) for stage in stages]
            seconds = "–" if processor.endswith("(emulated)") else str(row["seconds"])
            yield f"| {processor} | " + " | ".join([*letters, seconds]) + " |"
        yield ""


def _letter(stage: str, digest: str, found: dict[str, Any]) -> str:
    """Return a letter for a digest: the same one for processors that agree."""
    seen = list(dict.fromkeys(row["digests"][stage] for row in found.values()))
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[seen.index(digest)]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["table"])
    parser.add_argument("--cpu", help="a processor that qemu-user emulates")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(measure()))
    elif chosen.what:
        print("\n".join(table()))
    else:
        run(chosen.cpu)


if __name__ == "__main__":
    main()
