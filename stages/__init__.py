"""One thin command-line module per rule: parse, call the library, write.

Threads and MKL's code path are fixed here, before anything imports torch, so that bits repeat; a stage
then sets its own thread count, which is a parameter. Nothing goes to the network either, unless the user says
HF_HUB_OFFLINE=0: what a run needs is on disk, and its bytes are known.
"""

import os

from mergemoe import environment  # noqa: F401  # its clock starts with this import

os.environ["MKL_CBWR"] = "AVX2"  # one result whatever the memory's alignment; COMPATIBLE takes twice the time
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", os.environ["HF_HUB_OFFLINE"])
