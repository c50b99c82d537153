#!/usr/bin/env bash
# Environment of the recipes: an ESPnet clone if ESPNET_ROOT names one, else plain pip packages.

MAIN_ROOT=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../.." && pwd)

if [ -n "${ESPNET_ROOT:-}" ]; then
    if [ ! -d "${ESPNET_ROOT}/egs2" ]; then
        echo "error: ESPNET_ROOT=${ESPNET_ROOT} is not an ESPnet clone (no egs2 folder)" >&2
        exit 1
    fi
    for script in activate_python.sh extra_path.sh; do
        if [ -f "${ESPNET_ROOT}/tools/${script}" ]; then
            # shellcheck disable=SC1090
            set +u && . "${ESPNET_ROOT}/tools/${script}" && set -u
        fi
    done
    template=${ESPNET_ROOT}/egs2/TEMPLATE/asr1
    export PATH=${template}/utils:${template}/scripts/utils:${PATH}
    export PYTHONPATH=${MAIN_ROOT}:${ESPNET_ROOT}:${PYTHONPATH:-}
else
    if [ -d "${MAIN_ROOT}/.venv/bin" ]; then export PATH=${MAIN_ROOT}/.venv/bin:${PATH}; fi
    export PYTHONPATH=${MAIN_ROOT}${PYTHONPATH:+:${PYTHONPATH}}
fi

# One thread per process: processes are what the recipe counts.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONIOENCODING=UTF-8 LC_ALL=C.UTF-8 TOKENIZERS_PARALLELISM=false

if [ -f ./local/path.sh ]; then
    # shellcheck disable=SC1091
    . ./local/path.sh
fi
