#!/usr/bin/env bash
# Stage 1: render the built-in corpus into data/ (its marker makes a second call return at once).
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

# options begin
tier=mini  # Size of the corpus: smoke, mini or full
nj=2  # Worker processes
seed=0  # Same seed, same bytes
renderer=espeak  # espeak, or tone for tests without the synthesiser
# options end

# shellcheck source=../../../TEMPLATE/bestow1/scripts/parse_options.sh
. ./scripts/parse_options.sh
parse_options "${BASH_SOURCE[0]}" "$@"
# shellcheck source=../../../TEMPLATE/bestow1/path.sh
. ./path.sh

read -r -a python_words <<<"${python:-python3}"
"${python_words[@]}" -m espnet_bestow.bin.bestow_corpus --output_dir data --tier "${tier}" --nj "${nj}" \
    --seed "${seed}" --renderer "${renderer}"
