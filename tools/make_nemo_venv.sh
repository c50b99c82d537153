#!/usr/bin/env bash
# Makes .venv-nemo with NVIDIA NeMo 3.0: its pins do not fit ours, and only benchmarks and golden tensors need it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv-nemo
torch=$(grep '^torch==' constraints.txt)
transformers=$(grep '^transformers==' constraints.txt)
wanted="nemo_toolkit==3.0.0 $torch $transformers"
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$venv"
    echo "make: $venv with NeMo, once; this takes a few minutes and about 6 GB"
    .venv/bin/python -m venv "$venv"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "$torch"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet \
        'nemo_toolkit[asr]==3.0.0' "$torch" "$transformers"
    echo "$wanted" >"$venv/.installed"
fi
