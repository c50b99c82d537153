#!/usr/bin/env bash
# CoVoST 2, from Common Voice's clips to BLEU and WER: one model translates and transcribes, then it streams.
# ./run.sh --help lists the options; all of them are passed on to bestow.sh, except these of its own:
#   --directions "en-de de-en"  (these two)
#   --commonvoice <folder>  (COMMONVOICE of db.sh)
#   --covost2 <folder>  (COVOST2 of db.sh)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

directions="en-de de-en"
data_opts=
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --directions) directions=${2:?--directions needs a value such as "en-de de-en"}; shift 2 ;;
        --commonvoice | --covost2) data_opts+="$1 ${2:?$1 needs a value: a folder} "; shift 2 ;;
        *) options+=("$1"); shift ;;
    esac
done
read -r -a each <<<"${directions//,/ }"
directions=${each[*]}

./bestow.sh \
    --stop_stage 20 \
    --skip_upload_hf true \
    --nj 4 \
    --ngpu 1 \
    --gpu_inference true \
    --inference_nj 1 \
    --train_set train \
    --valid_set dev \
    --test_sets "${each[*]/#/test_}" \
    --local_data_opts "${data_opts}--directions ${directions// /,}" \
    --llm TinyLlama/TinyLlama-1.1B-Chat-v1.0 \
    --ctc_config conf/train_ctc.yaml \
    --bidi_config conf/train_bidi.yaml \
    --unid_config conf/train_unid.yaml \
    --unid_ctc_config conf/train_unid_ctc.yaml \
    --streaming_tasks ast \
    --streaming_sets "${each[*]/#/test_}" \
    --streaming_step 4 \
    --simuleval_policy "wait_k:k=10,step=STEP" \
    --simuleval_args "--bestow-device cuda" \
    --simuleval_rows 200 \
    --curve_policies "wait_k:k=3/4/6/8/10/12,step=STEP" \
    --simulate_args "--device cuda --sessions 16" \
    "${options[@]}"
