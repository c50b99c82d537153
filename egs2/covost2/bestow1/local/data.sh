#!/usr/bin/env bash
# Stage 1: from Common Voice 4 and CoVoST 2 to data/train, data/dev and data/test_<direction>.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

# options begin
commonvoice=""  # Folder that holds <language>/clips; empty: COMMONVOICE of db.sh
covost2=""  # Folder that holds covost_v2.<source>_<target>.*tsv; empty: COVOST2 of db.sh
directions="en-de de-en"  # What is translated, separated by spaces or commas
# options end

# shellcheck source=../../../TEMPLATE/bestow1/scripts/parse_options.sh
. ./scripts/parse_options.sh
parse_options "${BASH_SOURCE[0]}" "$@"
# shellcheck source=../../../TEMPLATE/bestow1/path.sh
. ./path.sh
# shellcheck source=../db.sh
. ./db.sh

commonvoice=${commonvoice:-${COMMONVOICE}}
covost2=${covost2:-${COVOST2}}
if [ -z "${commonvoice}" ]; then
    option_error "where is Common Voice? Set COMMONVOICE in db.sh, or give --commonvoice"
fi
if [ -z "${covost2}" ]; then
    option_error "where is CoVoST 2? Set COVOST2 in db.sh, or give --covost2"
fi
read -r -a python_words <<<"${python:-python3}"
read -r -a direction_words <<<"${directions//,/ }"
"${python_words[@]}" local/prepare_covost2.py --commonvoice "${commonvoice}" --covost2 "${covost2}" --output_dir data \
    --directions "${direction_words[@]}"
