#!/usr/bin/env bash
# Python that has ESPnet imported already: see espnet_bestow/warm.py. Sourced by bestow.sh.
# shellcheck disable=SC2154  # the options and names of bestow.sh

warm_dir=

# The command that starts a Python module which imports ESPnet or transformers, in the array `warm_words`. The first
# use imports, the others fork. Other machines, which a launcher may choose, import for themselves; so do processes that
# use a GPU, because CUDA does not survive a fork and imports may wake it.
set_warm_words() {
    warm_words=("${python_words[@]}")
    if "${warm}" && ! "${gpu_inference}" && [ "${ngpu}" -eq 0 ] \
        && [ -z "${train_cmd-}${cuda_cmd-}${decode_cmd-}" ]; then
        warm_dir=$(mktemp -d)
        warm_words+=(-m espnet_bestow.warm run "${warm_dir}")
    fi
}

# Without its folder the server of warm_words ends, as soon as nothing runs.
end_warm() { if [ -n "${warm_dir}" ]; then rm -rf "${warm_dir}"; fi; }
at_exit+=(end_warm)

# warm_py -m MODULE ARG...: py, for modules that import ESPnet or transformers.
warm_py() { "${threads[@]}" "${warm_words[@]}" "$@"; }

# warm_ahead: the imports begin now, beside what needs no ESPnet.
warm_ahead() {
    if [ -n "${warm_dir}" ]; then warm_py -m espnet_bestow.bin.filter_data_dir --help >/dev/null 2>&1 & fi
}
