#!/usr/bin/env bash
# Stage 1: from tasks of Dynamic-SUPERB to data/train, data/valid, data/test_seen and data/test_unseen.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

# options begin
dynamic_superb=""  # Folder that holds a folder for each task; empty: DYNAMIC_SUPERB of db.sh
unseen_tasks=""  # Tasks that training does not see, separated by spaces or commas
task_names=""  # File of lines "<folder of a task> <name in utt2task>"; empty: label_<folder of a task>
nj=4  # Processes that join recordings
# options end

# shellcheck source=../../../TEMPLATE/bestow1/scripts/parse_options.sh
. ./scripts/parse_options.sh
parse_options "${BASH_SOURCE[0]}" "$@"
# shellcheck source=../../../TEMPLATE/bestow1/path.sh
. ./path.sh
# shellcheck source=../db.sh
. ./db.sh

dynamic_superb=${dynamic_superb:-${DYNAMIC_SUPERB}}
if [ -z "${dynamic_superb}" ]; then
    option_error "where is Dynamic-SUPERB? Set DYNAMIC_SUPERB in db.sh, or give --dynamic_superb"
fi
read -r -a python_words <<<"${python:-python3}"
read -r -a unseen <<<"${unseen_tasks//,/ }"
"${python_words[@]}" local/prepare_dynamic_superb.py --dynamic_superb "${dynamic_superb}" --output_dir data \
    --nj "${nj}" ${task_names:+--task_names "${task_names}"} --unseen_tasks "${unseen[@]}"
