#!/usr/bin/env bash
# The built-in corpus, from nothing to scores: transcripts, translations, answers and commands, then the same streaming.
# ./run.sh --help lists the options: its own first, then those of bestow.sh, to which all others go.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# options begin
## This recipe
tier=mini  # Size of the corpus: smoke, mini or full
# options end

# shellcheck source=../../TEMPLATE/bestow1/scripts/parse_options.sh
. scripts/parse_options.sh
take_options run.sh "$@"

# The training of stage 11 takes epochs, which are short where recordings are few.
if [ "${tier}" = smoke ]; then
    few="--num_iters_per_epoch 100 --scheduler_conf max_steps=100"
    others=(--ctc_args "${few}" --asr_args "${few}" --bidi_args "${few}" --unid_args "${few}" "${others[@]}")
fi

./bestow.sh \
    --stop_stage 20 \
    --skip_upload_hf true \
    --nj 2 \
    --nproc 2 \
    --inference_nj 2 \
    --train_set train \
    --valid_set valid \
    --test_sets "test test_unseen test_noisy test_long" \
    --local_data_opts "--tier ${tier} --nj 2" \
    --max_wav_duration 15 \
    --lm_train_text data/lm/train.txt \
    --lm_dev_text data/lm/valid.txt \
    --nbpe 350 \
    --ctc_config conf/train_ctc.yaml \
    --asr_config conf/train_asr.yaml \
    --bidi_config conf/train_bidi.yaml \
    --unid_config conf/train_unid.yaml \
    --unid_ctc_config conf/train_unid_ctc.yaml \
    --streaming_tasks "asr_en ast_de-en ast_en-de" \
    --simuleval_rows 20 \
    --curve_policies "wait_k:k=1/2/4/6/8/12,step=STEP align_att:threshold=2/4/8/12,step=STEP" \
    --offline_curve_policies "offline local_agreement:n=2,step=4/8/16" \
    --simulate_args "--sessions 60 --max_rows 120" \
    "${others[@]}"
