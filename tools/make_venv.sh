#!/usr/bin/env bash
# Makes .venv with the tested versions (constraints.txt) and this package, editable, in it.
# Does nothing when that has been done already; starts over when the last attempt broke off.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
unfinished=$venv/.installing # there from the first to the last moment of an installation
stamp=$venv/.installed       # what was installed and where: a moved checkout installs anew

is_supported() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] not in ((3, 12), (3, 13)))' \
        >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" && echo "$PYTHON" && return
        echo "make: PYTHON=$PYTHON is not a Python 3.12 or 3.13 with venv and ensurepip" >&2
        return 1
    fi
    for candidate in python3.13 python3.12 python3 python \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[32]*/bin/python; do
        is_supported "$candidate" && echo "$candidate" && return
    done
    echo "make: found neither Python 3.13 nor 3.12 (with venv and ensurepip) as python3.13, python3.12," \
        "python3, python or in pyenv; install one, or name it: make PYTHON=/path/to/python3.12" >&2
    return 1
}

pip=("$venv/bin/python" -m pip install --disable-pip-version-check)

# packages INSTALLER...: the package, all it needs, and simuleval. The pins of simuleval itself (an old tqdm) would
# break other packages; nothing of it needs them.
packages() {
    "$@" --constraint constraints.txt --editable '.[corpus,dev,simul]' \
        && "$@" --quiet --constraint constraints.txt --no-deps simuleval
}

install() {
    local python
    if [ -e "$unfinished" ] || [ -e "$stamp" ] && [ "$(head -n 1 "$stamp" 2>/dev/null)" != "$PWD" ]; then
        echo "make: $venv is unfinished or was made elsewhere; making it anew"
        rm -rf "$venv"
    fi
    if ! is_supported "$venv/bin/python"; then
        python=$(find_python)
        rm -rf "$venv"
        mkdir "$venv"
        touch "$unfinished"
        echo "make: $venv with $("$python" -V), once; this takes a few minutes and about 6 GB"
        "$python" -m venv "$venv"
    fi
    touch "$unfinished"
    rm -f "$stamp"
    # uv takes less than a minute for what takes pip three. It trusts whom the system trusts, as pip does, but does not read
    # pip's configuration: where it cannot reach its index, or cannot be had, pip does the work.
    if ! { "${pip[@]}" --quiet --constraint constraints.txt uv \
        && packages "$venv/bin/uv" pip install --system-certs --python "$venv"; }
    then
        echo "make: installing with pip instead of uv"
        packages "${pip[@]}"
    fi
    echo "$wanted" >"$stamp"
    rm "$unfinished"
}

wanted=$(printf '%s\n%s' "$PWD" "$(cat constraints.txt setup.py | cksum)")
if [ -e "$unfinished" ] || [ ! -x "$venv/bin/python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    install
fi

# The kernels, against the torch that is now there, for the CPU and, where there is nvcc, for GPUs; with BESTOW_BUILD=here
# those that this machine can run. Without a compiler attention runs on PyTorch alone.
if [ -d csrc ]; then
    shopt -s globstar nullglob
    ops_stamp=$venv/.ops
    native=$(cat "$stamp" setup.py tools/build_ops.py tools/setup_cuda.py csrc/**/*.* | cksum)
    native+=" ${CXX:-} ${BESTOW_CUDA:-} ${BESTOW_CUDA_ARCHS:-} ${TORCH_CUDA_ARCH_LIST:-} ${CUDA_HOME:-$(command -v nvcc || true)}"
    made=$(cat "$ops_stamp" 2>/dev/null || true)
    for_this=$native
    if [ "${BESTOW_BUILD:-}" = here ]; then
        for_this+=" here $({ grep -m 1 '^flags' /proc/cpuinfo || true; nvidia-smi -L || true; } 2>/dev/null | cksum)"
    fi
    # A module with all kernels serves this machine, too.
    if [ "$made" != "$native" ] && [ "$made" != "$for_this" ]; then
        "$venv/bin/python" setup.py --quiet build_ext --inplace
        # What could not be built is tried again.
        if compgen -G "espnet_bestow/ops/_C*.so" >/dev/null; then echo "$for_this" >"$ops_stamp"; fi
    fi
fi
