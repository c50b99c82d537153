#!/usr/bin/env bash
# Everything that wants a GPU, in under 9 minutes: builds the kernels for this GPU, runs the correctness cases under
# compute-sanitizer where there is one, then correctness and speed, of the attention and of a training step. The tables
# come last, JSON beside them. Needs torch, transformers and nvcc, not ESPnet. Usage: benchmarks/gpu_suite.sh [--dry-run] [--out FILE]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="${PWD}${PYTHONPATH:+:${PYTHONPATH}}"
python=${PYTHON:-python3}

dry=false
for argument in "$@"; do [ "${argument}" = --dry-run ] && dry=true; done
if ! ${dry}; then
    export BESTOW_CUDA=1
    "${python}" setup.py -q build_ext --inplace
    sanitizer=$(command -v compute-sanitizer || true)
    if [ -n "${sanitizer}" ]; then
        logs=$(mktemp -d)
        for tool in memcheck racecheck initcheck; do # side by side: nobody is timed yet
            timeout 90 "${sanitizer}" --tool "${tool}" --error-exitcode 1 "${python}" benchmarks/gpu_suite.py \
                --only-correctness --out "${logs}/${tool}.json" >"${logs}/${tool}" 2>&1 ||
                echo "gpu_suite: ${tool} found errors or ran out of time: ${logs}/${tool}" >&2 &
        done
        wait
        tail -qn 1 "${logs}"/*check
    else
        echo "gpu_suite: no compute-sanitizer here" >&2
    fi
fi
"${python}" benchmarks/gpu_suite.py "$@"
if ! ${dry}; then # a whole training step, transformers' Llama included
    timeout 150 "${python}" benchmarks/bench_training_step.py --size paper --device cuda --dtype bf16 \
        --out training_step.json || echo "gpu_suite: no figures of the training step" >&2
fi
