#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in one go of under ten minutes: bash benchmarks/on_gpu.sh FOLDER
#
# Each step has a time limit of its own and leaves what it found in FOLDER, so that the others' figures are kept when one
# hangs. Needs this repository and Python with torch, numba-cuda, onnx, lightning, tqdm and pytest; engines take part
# that are installed (tensorrt-rtx, tensorrt, onnxruntime-gpu), the others are listed with what they need. Wheels in .whl/
# are installed first.
set -uo pipefail
out=${1:?"name a folder for what is found: bash benchmarks/on_gpu.sh FOLDER"}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
engines=$(mktemp -d)
site=$(mktemp -d)
trap 'rm -rf "$engines" "$site"' EXIT
export PYTHONUNBUFFERED=1

if compgen -G ".whl/*.whl" > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl
    export PYTHONPATH=$site
fi

step() { # name, seconds, command
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    timeout --signal=INT --kill-after=10 "$limit" "$@" > "$out/$name.txt" 2>&1
    echo "$name: exit status $?, $((SECONDS - began)) s: $*" | tee -a "$out/steps.txt"
}

load='import sys, tensorrt_rtx as t; data = open(sys.argv[1], "rb").read(); '
load+='print(t.Runtime(t.Logger(t.Logger.VERBOSE)).deserialize_cuda_engine(data))'
scan=(--shape 300,290,340 --spacing 1 --repeats 5)

step engines 60 python3 -m runtime.engines
step gpu 30 nvidia-smi
step latency 240 python3 -m benchmarks latency "${scan[@]}" --precisions fp16 fp32 --no-compile -o "$out/latency.json"
step tests 120 python3 -m pytest tests/gpu -q -rs -p no:cacheprovider
step compiled 60 python3 -m benchmarks latency --no-scan --precisions fp16 --repeats 5 --matrix 0 -o "$out/compiled.json"
# what TensorRT-RTX itself says of this GPU, whether it lists it or not: engines for all that it lists, loaded by it alone
step rtx-build 60 python3 -m export.engine build --engine tensorrt-rtx --precision fp16 --targets 80 86 89 120 -o "$engines"
for engine in "$engines"/*.engine; do
    step rtx-loads 20 python3 -c "$load" "$engine"
    break
done
