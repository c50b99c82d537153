#!/usr/bin/env bash
# Dynamic-SUPERB: follow instructions about speech, also those of tasks that training has not seen.
# ./run.sh --help lists the options: its own first, then those of bestow.sh, to which all others go.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# options begin
## This recipe
unseen_tasks=""  # Folders of tasks that training does not see
task_names=""  # File that names tasks; empty: they are named after their folders
dynamic_superb=""  # Folder of the corpus; empty: DYNAMIC_SUPERB of db.sh
# options end

# shellcheck source=../../TEMPLATE/bestow1/scripts/parse_options.sh
. scripts/parse_options.sh
take_options run.sh "$@"
data_opts=$(printf '%q ' --nj 4 --unseen_tasks "${unseen_tasks}" --task_names "${task_names}" \
    --dynamic_superb "${dynamic_superb}")

./bestow.sh \
    --stop_stage 14 \
    --skip_upload_hf true \
    --nj 4 \
    --ngpu 1 \
    --gpu_inference true \
    --inference_nj 1 \
    --train_set train \
    --valid_set valid \
    --test_sets "test_seen test_unseen" \
    --local_data_opts "${data_opts}" \
    --llm TinyLlama/TinyLlama-1.1B-Chat-v1.0 \
    "${others[@]}"
