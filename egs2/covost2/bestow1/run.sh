#!/usr/bin/env bash
# CoVoST 2, from Common Voice's clips to BLEU and WER: one model translates and transcribes, then it streams.
# ./run.sh --help lists the options: its own first, then those of bestow.sh, to which all others go.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# options begin
## This recipe
directions="en-de de-en"  # Pairs of languages
commonvoice=""  # Folder of Common Voice; empty: COMMONVOICE of db.sh
covost2=""  # Folder of CoVoST's tables; empty: COVOST2 of db.sh
# options end

# shellcheck source=../../TEMPLATE/bestow1/scripts/parse_options.sh
. scripts/parse_options.sh
take_options run.sh "$@"
read -r -a each <<<"${directions//,/ }"
data_opts=$(printf '%q ' --commonvoice "${commonvoice}" --covost2 "${covost2}" --directions "${each[*]}")

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
    --local_data_opts "${data_opts}" \
    --llm TinyLlama/TinyLlama-1.1B-Chat-v1.0 \
    --ctc_config conf/train_ctc.yaml \
    --bidi_config conf/train_bidi.yaml \
    --unid_config conf/train_unid.yaml \
    --unid_ctc_config conf/train_unid_ctc.yaml \
    --streaming_tasks ast \
    --streaming_sets "${each[*]/#/test_}" \
    --streaming_step 4 \
    --simuleval_policy "wait_k:k=10,step=STEP" \
    --simuleval_rows 200 \
    --curve_policies "wait_k:k=3/4/6/8/10/12,step=STEP" \
    --simulate_args "--sessions 16" \
    "${others[@]}"
