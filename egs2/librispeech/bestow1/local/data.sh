#!/usr/bin/env bash
# Stage 1: from an extracted LibriSpeech to data/<train_set>, data/dev, data/test_clean and data/test_other.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

# options begin
librispeech=""  # Folder that holds train-clean-100, dev-clean, ...; empty: LIBRISPEECH of db.sh
train_parts="train-clean-100"  # What training reads; several are separated by spaces or commas
train_set=train_clean_100  # Name of the training set
# options end

# shellcheck source=../../../TEMPLATE/bestow1/scripts/parse_options.sh
. ./scripts/parse_options.sh
parse_options "${BASH_SOURCE[0]}" "$@"
# shellcheck source=../../../TEMPLATE/bestow1/path.sh
. ./path.sh
# shellcheck source=../db.sh
. ./db.sh

librispeech=${librispeech:-${LIBRISPEECH}}
if [ -z "${librispeech}" ]; then
    option_error "where is LibriSpeech? Set LIBRISPEECH in db.sh, or give --librispeech"
fi
read -r -a python_words <<<"${python:-python3}"
read -r -a parts <<<"${train_parts//,/ }"
"${python_words[@]}" local/prepare_librispeech.py --librispeech "${librispeech}" --output_dir data \
    --train_set "${train_set}" --train_parts "${parts[@]}"
