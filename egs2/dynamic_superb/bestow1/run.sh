#!/usr/bin/env bash
# Dynamic-SUPERB: follow instructions about speech, also those of tasks that training has not seen.
# ./run.sh --help lists the options; all of them are passed on to bestow.sh, except these of its own:
#   --unseen_tasks "<folder of a task> ..."  (must be given)
#   --task_names <file>  (none: tasks are named after their folders)
#   --dynamic_superb <folder>  (DYNAMIC_SUPERB of db.sh)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

data_opts=()
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --unseen_tasks | --task_names | --dynamic_superb)
            value=${2:?$1 needs a value}
            data_opts+=("$1" "${value// /,}"); shift 2 ;;
        *) options+=("$1"); shift ;;
    esac
done

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
    --local_data_opts "--nj 4 ${data_opts[*]}" \
    --llm TinyLlama/TinyLlama-1.1B-Chat-v1.0 \
    "${options[@]}"
