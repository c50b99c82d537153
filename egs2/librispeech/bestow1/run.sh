#!/usr/bin/env bash
# LibriSpeech, from audio books to WER: CTC for the encoder, BESTOW on a frozen TinyLlama with LoRA, streaming.
# ./run.sh --help lists the options; all of them are passed on to bestow.sh, except these of its own:
#   --train_parts "train-clean-100 train-clean-360 train-other-500"  (train-clean-100)
#   --librispeech <folder>  (LIBRISPEECH of db.sh)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

train_parts=train-clean-100
data_opts=
options=()
while [ $# -gt 0 ]; do
    case $1 in
        --train_parts) train_parts=${2:?--train_parts needs a value: folders of LibriSpeech}; shift 2 ;;
        --librispeech) data_opts="--librispeech ${2:?--librispeech needs a value: a folder}"; shift 2 ;;
        *) options+=("$1"); shift ;;
    esac
done

# One part gives the set its name, several give it their hours: train_clean_100, train_460, train_960.
read -r -a parts <<<"${train_parts//,/ }"
train_set=${parts[0]//-/_}
if [ ${#parts[@]} -gt 1 ]; then
    hours=0
    for part in "${parts[@]}"; do hours=$((hours + 10#0${part//[!0-9]/})); done
    train_set=train_${hours}
fi
train_parts=${parts[*]}
data_opts+=" --train_set ${train_set} --train_parts ${train_parts// /,}"

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
    --local_data_opts "${data_opts# }" \
    --llm TinyLlama/TinyLlama-1.1B-Chat-v1.0 \
    --ctc_config conf/train_ctc.yaml \
    --bidi_config conf/train_bidi.yaml \
    --unid_config conf/train_unid.yaml \
    --unid_ctc_config conf/train_unid_ctc.yaml \
    --streaming_tasks asr_en \
    --streaming_sets test_other \
    --streaming_step 4 \
    --simuleval_policy "wait_k:k=6,step=STEP" \
    --simuleval_args "--bestow-device cuda" \
    --simuleval_rows 200 \
    --curve_policies "wait_k:k=3/4/6/8/10/12,step=STEP" \
    --simulate_args "--device cuda --sessions 16" \
    "${options[@]}"
