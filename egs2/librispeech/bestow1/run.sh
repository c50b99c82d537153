#!/usr/bin/env bash
# LibriSpeech, from audio books to WER: CTC for the encoder, BESTOW on a frozen TinyLlama with LoRA, streaming.
# ./run.sh --help lists the options: its own first, then those of bestow.sh, to which all others go.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# options begin
## This recipe
train_parts=train-clean-100  # Folders of training, e.g. "train-clean-100 train-clean-360 train-other-500"
librispeech=""  # Folder of the corpus; empty: LIBRISPEECH of db.sh
# options end

# shellcheck source=../../TEMPLATE/bestow1/scripts/parse_options.sh
. scripts/parse_options.sh
take_options run.sh "$@"

# One part gives the set its name, several give it their hours: train_clean_100, train_460, train_960.
read -r -a parts <<<"${train_parts//,/ }"
train_set=${parts[0]//-/_}
if [ ${#parts[@]} -gt 1 ]; then
    hours=0
    for part in "${parts[@]}"; do hours=$((hours + 10#0${part//[!0-9]/})); done
    train_set=train_${hours}
fi
data_opts=$(printf '%q ' --train_set "${train_set}" --train_parts "${parts[*]}" --librispeech "${librispeech}")

./bestow.sh \
    --stop_stage 20 \
    --skip_upload_hf true \
    --nj 4 \
    --ngpu 1 \
    --gpu_inference true \
    --inference_nj 1 \
    --train_set "${train_set}" \
    --valid_set dev \
    --test_sets "test_clean test_other" \
    --local_data_opts "${data_opts}" \
    --llm TinyLlama/TinyLlama-1.1B-Chat-v1.0 \
    --ctc_config conf/train_ctc.yaml \
    --bidi_config conf/train_bidi.yaml \
    --unid_config conf/train_unid.yaml \
    --unid_ctc_config conf/train_unid_ctc.yaml \
    --streaming_tasks asr_en \
    --streaming_sets test_other \
    --streaming_step 4 \
    --simuleval_policy "wait_k:k=6,step=STEP" \
    --simuleval_rows 200 \
    --curve_policies "wait_k:k=3/4/6/8/10/12,step=STEP" \
    --simulate_args "--sessions 16" \
    "${others[@]}"
