#!/usr/bin/env bash
# Make the frame of a new recipe: egs2/TEMPLATE/bestow1/setup.sh egs2/<corpus>/bestow1
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "Usage: $0 egs2/<corpus>/bestow1" >&2
    exit 2
fi
target=$1
# Its folders need not be there yet, so that they are counted in its name.
case ${target} in /*) recipes=${target} ;; *) recipes=${PWD}/${target} ;; esac
recipes=$(dirname "$(dirname "${recipes}")")
if [ ! -d "${recipes}/TEMPLATE/bestow1" ]; then
    echo "error: ${target} is not two folders below the folder that holds TEMPLATE" >&2
    exit 1
fi
mkdir -p "${target}"/{conf/tuning,local}
for name in bestow.sh path.sh scripts; do
    ln -sfn "../../TEMPLATE/bestow1/${name}" "${target}/${name}"
done
# What may be the recipe's own is left as it is.
if [ ! -e "${target}/cmd.sh" ]; then cp "$(dirname "$0")/cmd.sh" "${target}/cmd.sh"; fi
if [ ! -e "${target}/db.sh" ]; then ln -sfn ../../TEMPLATE/bestow1/db.sh "${target}/db.sh"; fi
# Data preparation scripts of other ESPnet recipes look for these.
if [ -n "${ESPNET_ROOT:-}" ]; then
    for name in utils steps; do
        if [ -d "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/${name}" ]; then
            ln -sfn "${ESPNET_ROOT}/egs2/TEMPLATE/asr1/${name}" "${target}/${name}"
        fi
    done
fi
echo "made ${target}: now write run.sh, local/data.sh and conf/*.yaml"
