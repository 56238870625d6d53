"""One thin command-line module per rule: parse, call the library, write.

Threads and the code paths of MKL and ATen are fixed here, before anything imports torch, so that results repeat bit by
bit; a stage then sets its own number of threads, which is a parameter. Nothing is downloaded unless the user sets
HF_HUB_OFFLINE=0: all that a run needs is on disk, with known bytes.
"""

import os

from mergemoe import environment  # the clock starts with this import

# The same result for any alignment of memory; with COMPATIBLE on processors of any maker, too (docs/audit.md).
os.environ.setdefault("MKL_CBWR", "AVX2")
if environment.has_avx2():  # the same result with and without AVX-512; benchmarks/portability.py
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
