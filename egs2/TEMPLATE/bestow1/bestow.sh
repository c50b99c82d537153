#!/usr/bin/env bash
# BESTOW from raw data to scores: the stages of ESPnet's asr.sh with ESPnet's option names.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

# options begin
## General
stage=1  # First stage to run
stop_stage=10000  # Last stage to run
skip_stages=""  # Stages to leave out, e.g. "2 9"
skip_data_prep=false  # Leave out stages 1 to 5
skip_train=false  # Leave out stages 6 to 11, 16 and 17
skip_eval=false  # Leave out stages 12 and 13
skip_packing=false  # Leave out stage 14
skip_upload_hf=false  # Leave out stage 15
skip_streaming=false  # Leave out stages 16 to 20
python=python3  # Python command
warm=true  # Without GPUs and launchers: import ESPnet once and fork all Python processes from there
nj=4  # Parallel processes in data preparation and statistics
inference_nj=4  # Parallel processes in decoding and streaming
gpu_inference=false  # Decode and stream on GPUs
dumpdir=dump  # Directory for formatted data
expdir=exp  # Directory for models and results

## Training processes
ngpu=0  # GPUs per machine (0: train on the CPU)
nproc=1  # CPU processes per machine when ngpu is 0
num_threads=1  # Threads of each training process on the CPU
num_nodes=1  # Machines; run the same command on each of them
node_rank=0  # Number of this machine, from 0
master_addr=localhost  # Address of machine 0
master_port=29500  # Port on machine 0

## Data
train_set=  # Training set, a directory under data/
valid_set=  # Validation set
test_sets=  # Test sets, separated by spaces
local_data_opts=  # Options for local/data.sh; quotes keep blanks together
fs=16k  # Sampling rate
min_wav_duration=0.1  # Shorter audio of training and validation is rejected (seconds)
max_wav_duration=30.0  # Longer audio of training and validation is rejected (seconds)
max_raw_duration=600.0  # Longer audio of any set is not even decoded (seconds)
speed_perturb_factors=""  # Speeds of the training set, e.g. "0.9 1.0 1.1"
skip_bad_utts=true  # List bad rows and go on; false: any bad row is fatal
default_task=""  # Task of data that has no utt2task, e.g. asr_en or ast_en-de
text_file=text  # File of the answers in data/*, e.g. text.tc.de
src_text_file=src_text  # File of the transcripts in data/*, e.g. text.tc.en

## Language model
llm=""  # Pretrained causal LM, path or hub id; empty: train a small one on text
llm_config=conf/train_llm.yaml  # Training of the small one
nbpe=300  # Vocabulary size of the small one
lm_train_text=""  # Text for the small one, one line each; empty: texts of the training set
lm_dev_text=""  # Text for its validation; empty: texts of the validation set

## Model
bestow_config=conf/train_bestow.yaml  # Training configuration
variant_config=""  # What changes in it in all trainings, e.g. conf/tuning/conformer.yaml; empty: nothing
model_args=""  # Options of bestow_train over it in all trainings, e.g. "--template chat"
bestow_args=""  # Options of bestow_train over these in the training of stage 11, e.g. "--max_epoch 3"
bestow_tag=""  # Name of the experiment; default: the file name of variant_config or bestow_config
bestow_exp=""  # Its directory; default: <expdir>/bestow_<tag>
ctc_config=""  # What CTC pre-training of the encoder changes in bestow_config; empty: none
ctc_args=""  # Options of bestow_train over ctc_config
ctc_exp=""  # Its directory; default: <bestow_exp>_ctc
asr_config=""  # What training on transcripts alone, before all tasks, changes in bestow_config; empty: none
asr_args=""  # Options of bestow_train over asr_config
asr_exp=""  # Its directory; default: <bestow_exp>_asr

## Decoding, packing
inference_config=conf/decode.yaml  # Decoding configuration
inference_args=""  # More options for bestow_inference
inference_tag=""  # Name of the decoding; default: from its configuration and model
inference_model=valid.acc.best.pth  # Checkpoint in the experiment's directory
download_model=""  # Decode with this model of the hub instead of training one
hf_repo=""  # Hub repository for stage 15; empty: no upload

## Streaming
streaming_tasks="asr ast"  # Tasks, or families of tasks, that are streamed
streaming_sets=""  # Test sets for it; empty: the first one
streaming_step=""  # Encoder frames per written token (wait-k's step); empty: median of the training set
bidi_config=""  # What streaming with a re-computed encoder (S-bidi) changes in bestow_config; empty: none
bidi_args=""  # Options of bestow_train over it
bidi_exp=""  # Its directory; default: <bestow_exp>_bidi
unid_config=""  # What streaming with a streaming encoder (S-unid) changes in bestow_config; empty: none
unid_ctc_config=""  # What CTC pre-training of that encoder, if it is not the offline model's, changes in it; empty: none
unid_init=""  # Parts of the offline model that this pre-training begins with, "<part>:<part of the new model> ..."
unid_teacher_weight=""  # Weight of the offline encoder's frames as a target in it, if both make 80 ms frames; empty: none
unid_args=""  # Options of bestow_train over it
unid_exp=""  # Its directory; default: <bestow_exp>_unid
streaming_model=valid.acc.best.pth  # Checkpoint in the directories of both
segment_size=320  # Milliseconds of audio that are sent at a time
simuleval_policy="wait_k:k=8,step=STEP"  # Policy of stage 18; STEP becomes streaming_step
simuleval_rows=""  # Rows of each task, evenly chosen, for stage 18 and the clock of stage 19; empty: all
simuleval_args=""  # More options for simuleval
curve_policies="wait_k:k=1/2/4/6/8/10/12,step=STEP"  # Policies of stage 19, a/b/c is one after the other
offline_curve_policies=""  # Policies of stage 19 for the offline model, e.g. local_agreement:n=2
simulate_args=""  # More options for bestow_simulate, e.g. "--max_rows 40"
# options end

command_line=$(printf '%q ' "$0" "$@")
command_line=${command_line% }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/parse_options.sh
. "${here}/scripts/parse_options.sh"
# shellcheck source=scripts/stages.sh
. "${here}/scripts/stages.sh"
# shellcheck source=scripts/jobs.sh
. "${here}/scripts/jobs.sh"
# shellcheck source=scripts/warm.sh
. "${here}/scripts/warm.sh"
# shellcheck source=scripts/data.sh
. "${here}/scripts/data.sh"
# shellcheck source=scripts/language_model.sh
. "${here}/scripts/language_model.sh"
# shellcheck source=scripts/model.sh
. "${here}/scripts/model.sh"
# shellcheck source=scripts/evaluation.sh
. "${here}/scripts/evaluation.sh"
# shellcheck source=scripts/streaming.sh
. "${here}/scripts/streaming.sh"
parse_options "${BASH_SOURCE[0]}" "$@"

if [ -f ./path.sh ]; then
    # shellcheck source=path.sh
    . ./path.sh
fi
if [ -f ./cmd.sh ]; then
    # shellcheck source=cmd.sh
    . ./cmd.sh
fi
at_least_one nj inference_nj nproc num_threads num_nodes
[[ ${skip_stages} =~ ^[0-9\ ,]*$ ]] || option_error "--skip_stages must be numbers, not '${skip_stages}'"
read -r -a python_words <<<"${python}"
# Threads that wait actively take the processor from the data loader.
threads=(env "OMP_NUM_THREADS=${num_threads}" OMP_WAIT_POLICY=PASSIVE)
set_warm_words
# For local/data.sh.
export python
read -r -a tests <<<"${test_sets}"
read -r -a speeds <<<"${speed_perturb_factors}"
read -r -a inference_words <<<"${inference_args}"
read -r -a unid_parts <<<"${unid_init}"
read -r -a simuleval_words <<<"${simuleval_args}"
read -r -a simulate_words <<<"${simulate_args}"
read -r -a streaming_words <<<"${streaming_tasks}"
read -r -a stream_sets <<<"${streaming_sets:-${tests[0]-}}"

# --- names ---
if "${skip_data_prep}"; then skip_stages+=" 1 2 3 4 5"; fi
if "${skip_train}" || [ -n "${download_model}" ]; then skip_stages+=" 6 7 8 9 10 11"; fi
if "${skip_eval}"; then skip_stages+=" 12 13"; fi
if "${skip_packing}" || [ -n "${download_model}" ]; then skip_stages+=" 14"; fi
if "${skip_upload_hf}" || [ -n "${download_model}" ]; then skip_stages+=" 15"; fi
if "${skip_streaming}"; then skip_stages+=" 16 17 18 19 20"; fi
if "${skip_train}" || [ -n "${download_model}" ]; then skip_stages+=" 16 17"; fi

if [ -z "${bestow_tag}" ]; then
    bestow_tag=$(basename "${variant_config:-${bestow_config}}" .yaml)
    bestow_tag=${bestow_tag#train_} bestow_tag=${bestow_tag#bestow_}
    if [ "${bestow_tag}" = bestow ]; then bestow_tag=; fi
fi
bestow_exp=${bestow_exp:-${expdir}/bestow${bestow_tag:+_${bestow_tag}}}
ctc_exp=${ctc_exp:-${bestow_exp}_ctc}
asr_exp=${asr_exp:-${bestow_exp}_asr}
stats_dir=${bestow_exp}_stats
system=$(basename "${bestow_exp}")
if [ -n "${download_model}" ]; then
    bestow_exp=${expdir}/${download_model//\//_}
    system=${download_model}
fi
# What all trainings have in common, and the configuration of the offline model.
of_all=("${bestow_config}" "${variant_config}" "${model_args}")
offline_config=${bestow_exp}/train.yaml
inference_model=${inference_model%.pth}
if [ -z "${inference_tag}" ]; then
    inference_tag=$(basename "${inference_config}" .yaml)_${inference_model}
fi

bidi_exp=${bidi_exp:-${bestow_exp}_bidi}
unid_exp=${unid_exp:-${bestow_exp}_unid}
offline_weights=${bestow_exp}/${inference_model}.pth
streaming_model=${streaming_model%.pth}.pth
before_unid=${bidi_config:+${bidi_exp}/${streaming_model}}
before_unid=${before_unid:-${offline_weights}}
# Models that stream: directory of results -> model.
declare -A stream_models=()
if [ -n "${download_model}" ]; then
    stream_models[${bestow_exp}]=${download_model}
else
    if [ -n "${bidi_config}" ]; then stream_models[${bidi_exp}]=${bidi_exp}/${streaming_model}; fi
    if [ -n "${unid_config}" ]; then stream_models[${unid_exp}]=${unid_exp}/${streaming_model}; fi
fi

# Where models train, and where they decode and stream.
train_launcher=${train_cmd:-}
if [ "${ngpu}" -gt 0 ]; then train_launcher=${cuda_cmd:+${cuda_cmd} --gpu ${ngpu}}; fi
if "${gpu_inference}"; then
    decode_launcher=${cuda_cmd:+${cuda_cmd} --gpu 1} decode_device=cuda
else
    decode_launcher=${decode_cmd:-} decode_device=cpu
fi

raw=${dumpdir}/raw
own_llm=false tokenizer=${llm} llm_path=${llm}
if [ -z "${llm}" ]; then
    own_llm=true tokenizer=${expdir}/tokens_bpe${nbpe} llm_path=${expdir}/llm_bpe${nbpe}
fi
train_source=${train_set}
if [ ${#speeds[@]} -gt 0 ]; then train_source=${train_set}_sp; fi

# --- data: stages 1 to 5 ---
if begin_stage 1 "data preparation (local/data.sh)"; then
    mapfile -t data_words < <(xargs -r printf '%s\n' <<<"${local_data_opts}")
    if [ ! -f "data/${train_set}/wav.scp" ]; then warm_ahead; fi
    local/data.sh "${data_words[@]}"
fi

if begin_stage 2 "speed perturbation"; then
    need train_set
    if [ ${#speeds[@]} -eq 0 ]; then
        log "nothing to do without --speed_perturb_factors"
    else
        mapfile -t inputs < <(tables "data/${train_set}")
        once "data/${train_set}_sp/.done" "${inputs[@]}" "${speed_perturb_factors}" "${fs}" \
            "${text_file} ${src_text_file} ${max_raw_duration}" -- perturb
    fi
fi

if begin_stage 3 "format audio"; then
    need train_set valid_set
    for name in "${train_set}" "${valid_set}" "${tests[@]}"; do
        source=${name}
        if [ "${name}" = "${train_set}" ]; then source=${train_source}; fi
        mapfile -t inputs < <(tables "data/${source}")
        once "${raw}/org/${name}/.done" "${inputs[@]}" "${fs}" "${default_task}" \
            "${text_file} ${src_text_file} ${max_raw_duration}" -- format_set "${source}" "${name}"
    done
fi

if begin_stage 4 "list and leave out bad rows"; then
    need train_set valid_set
    filter_all .done --llm "${llm}"
fi

if begin_stage 5 "tokens"; then
    need train_set valid_set
    if "${own_llm}"; then
        need_file "${raw}/${train_set}/text" "run stage 4"
        # What stage 4 read, not what it wrote: the filter below takes rows away from that.
        once "${tokenizer}/.done" "${raw}/org/${train_set}"/{text,src_text,prompt} \
            "${min_wav_duration} ${max_wav_duration} ${max_raw_duration}" "${lm_train_text}" "${nbpe}" -- train_tokens
        need_file "${llm_config}" "--llm_config"
        filter_all .done_tokens --tokenizer "${tokenizer}" --llm_config "${llm_config}"
        write_words  # the language model must not meet what was left out just now
    else
        log "tokens come with ${llm}"
    fi
fi

# --- language model: stages 6 to 8 ---
llm_train_text=${lm_train_text:-${tokenizer}/text/train.txt}
llm_valid_text=${lm_dev_text:-${tokenizer}/text/valid.txt}

if begin_stage 6 "statistics of the language model's text"; then
    if "${own_llm}"; then
        need_file "${llm_train_text}" "--lm_train_text"
        need_file "${llm_valid_text}" "--lm_dev_text"
        once "${llm_path}_stats/.done" "${llm_train_text}" "${llm_valid_text}" -- count_text
    else
        log "skipped: the language model is ${llm}"
    fi
fi

if begin_stage 7 "train the language model on text"; then
    if "${own_llm}"; then
        need_file "${llm_config}" "--llm_config"
        once "${llm_path}/.done" "${llm_config}" "${llm_train_text}" "${llm_valid_text}" \
            "${tokenizer}/tokenizer.json" -- train_llm
    else
        log "skipped: the language model is ${llm}"
    fi
fi

if begin_stage 8 "perplexity of the language model"; then
    if "${own_llm}"; then
        once "${llm_path}/.done_perplexity" "${llm_path}/.done" "${llm_valid_text}" -- perplexity
    else
        log "skipped: the language model is ${llm}"
    fi
fi

# --- model: stages 9 to 11 ---
if begin_stage 9 "pre-training: the encoder with CTC, then transcripts alone"; then
    if [ -z "${ctc_config}${asr_config}" ]; then
        log "nothing to do without --ctc_config or --asr_config"
    else
        ensure_stats
        mapfile -t origin < <(training_origin)
    fi
    if [ -n "${ctc_config}" ]; then
        need_file "${ctc_config}" "--ctc_config"
        configure "${ctc_exp}" "${of_all[@]}" "${ctc_config}" "${ctc_args}"
        once "${ctc_exp}/.done" "${origin[@]}" "${ctc_exp}/train.yaml" -- pretrain_encoder "${ctc_exp}"
    fi
    if [ -n "${asr_config}" ]; then
        need_file "${asr_config}" "--asr_config"
        configure "${asr_exp}" "${of_all[@]}" "${asr_config}" "${asr_args}"
        once "${asr_exp}/.done" "${origin[@]}" "${asr_exp}/train.yaml" \
            "${ctc_config:+${ctc_exp}/valid.loss.best.pth}" "${llm_path}/.done" -- pretrain_asr
    fi
fi

if begin_stage 10 "statistics of the training data"; then ensure_stats; fi

if begin_stage 11 "train BESTOW"; then
    need_file "${stats_dir}/train/speech_shape" "run stage 10"
    configure_offline
    mapfile -t origin < <(training_origin)
    once "${bestow_exp}/.done" "${origin[@]}" "${offline_config}" \
        "${ctc_config:+${ctc_exp}/valid.loss.best.pth}" "${asr_config:+${asr_exp}/valid.acc.best.pth}" \
        "${llm_path}/.done" -- train_bestow
fi

# --- evaluation: stages 12 and 13 ---
model_options=(--bestow_train_config "${bestow_exp}/config.yaml"
    --bestow_model_file "${bestow_exp}/${inference_model}.pth")
if [ -n "${download_model}" ]; then model_options=(--model_tag "${download_model}"); fi

if begin_stage 12 "decode"; then
    need test_sets
    need_file "${inference_config}" "--inference_config"
    if [ -z "${download_model}" ]; then
        need_file "${bestow_exp}/${inference_model}.pth" "--inference_model, or run stage 11"
    fi
    for name in "${tests[@]}"; do
        need_file "${raw}/${name}/wav.scp" "run stages 3 and 4"
        once "${bestow_exp}/${inference_tag}/${name}/.done" "${raw}/${name}"/{wav.scp,prompt,.done} \
            "${inference_config}" "${inference_args}" "${bestow_exp}/${inference_model}.pth" \
            "${bestow_exp}/config.yaml" "${download_model}" -- decode_set "${name}"
    done
fi

if begin_stage 13 "score"; then
    need test_sets
    # Scores of all sets lie in one file; without it no set has any.
    if [ ! -f "${expdir}/results.json" ]; then rm -f "${bestow_exp}/${inference_tag}"/*/.done_score; fi
    for name in "${tests[@]}"; do
        hyp=${bestow_exp}/${inference_tag}/${name}/text
        need_file "${hyp}" "run stage 12"
        once "${hyp%/*}/.done_score" "${hyp}" "${raw}/${name}"/{text,utt2task} "${system}" \
            -- score_set "${name}"
    done
    py -m espnet_bestow.bin.bestow_report --exp "${expdir}"
fi

# --- publishing: stages 14 and 15 ---
packed=${bestow_exp}/${system}.zip

if begin_stage 14 "pack the model"; then
    need_file "${bestow_exp}/${inference_model}.pth" "run stage 11"
    once "${bestow_exp}/.done_pack" "${bestow_exp}/${inference_model}.pth" \
        "${bestow_exp}/config.yaml" -- pack
fi

if begin_stage 15 "upload the model"; then
    if [ -z "${hf_repo}" ]; then
        log "nothing to do without --hf_repo"
    else
        need_file "${packed}" "run stage 14"
        once "${bestow_exp}/.done_upload" "${packed}" "${hf_repo}" -- upload
    fi
fi

# --- streaming: stages 16 to 20 ---
if begin_stage 16 "train for streaming with a re-computed encoder (S-bidi)"; then
    if [ -z "${bidi_config}" ]; then
        log "nothing to do without --bidi_config"
    else
        need_file "${bidi_config}" "--bidi_config"
        need_file "${offline_weights}" "run stage 11"
        set_step
        configure_offline
        configure "${bidi_exp}" "${of_all[@]}" "${bidi_config}" "policy_conf.step=${step}" "${bidi_args}"
        mapfile -t origin < <(training_origin)
        once "${bidi_exp}/.done" "${origin[@]}" "${bidi_exp}/train.yaml" "${offline_weights}" -- train_bidi
    fi
fi

if begin_stage 17 "train for streaming with a streaming encoder (S-unid)"; then
    if [ -z "${unid_config}" ]; then
        log "nothing to do without --unid_config"
    else
        need_file "${unid_config}" "--unid_config"
        need_file "${offline_weights}" "run stage 11"
        need_file "${before_unid}" "run stage 16"
        set_step
        configure_offline
        configure "${unid_exp}" "${of_all[@]}" "${unid_config}" "policy_conf.step=${step}" "${unid_args}"
        mapfile -t origin < <(training_origin)
        once "${unid_exp}/.done" "${origin[@]}" "${unid_exp}/train.yaml" "${unid_ctc_config}" "${ctc_args}" \
            "${unid_init} ${unid_teacher_weight}" "${offline_weights}" "${before_unid}" -- train_unid
    fi
fi

if begin_stage 18 "simuleval"; then
    if [ ${#stream_models[@]} -eq 0 ]; then
        log "nothing to do without --bidi_config, --unid_config or --download_model"
    else
        need stream_sets
        set_step
        policy=${simuleval_policy//STEP/${step}}
        for name in "${stream_sets[@]}"; do
            need_file "${raw}/${name}/wav.scp" "run stages 3 and 4"
            for exp in "${!stream_models[@]}"; do
                model=${stream_models[${exp}]}
                if [ -z "${download_model}" ]; then need_file "${model}" "run stages 16 and 17"; fi
                once "${exp}/simuleval/${name}/.done" "${raw}/${name}"/{wav.scp,text,prompt,utt2task,.done} "${policy}" \
                    "${segment_size}" "${streaming_tasks}" "${simuleval_rows}" "${simuleval_args}" "${model}" \
                    -- simuleval_set "${model}" "${exp}/simuleval/${name}" "${name}" "${policy}"
            done
            draw_once simuleval "${name}"
        done
    fi
fi

if begin_stage 19 "latency-quality curves"; then
    if [ -n "${offline_curve_policies}" ] && [ -z "${download_model}" ]; then
        stream_models[${bestow_exp}]=${offline_weights}
    fi
    if [ ${#stream_models[@]} -eq 0 ]; then
        log "nothing to do without --bidi_config, --unid_config, --download_model or --offline_curve_policies"
    else
        need stream_sets
        set_step
        for exp in "${!stream_models[@]}"; do
            model=${stream_models[${exp}]}
            if [ -z "${download_model}" ]; then need_file "${model}" "run stages 11, 16 and 17"; fi
            wanted=${curve_policies}
            if [ "${model}" = "${offline_weights}" ]; then wanted=${offline_curve_policies}; fi
            read -r -a policies <<<"${wanted//STEP/${step}}"
            for name in "${stream_sets[@]}"; do
                need_file "${raw}/${name}/wav.scp" "run stages 3 and 4"
                once "${exp}/simulate/${name}/.done" "${raw}/${name}"/{wav.scp,text,prompt,utt2task,.done} \
                    "${policies[@]}" "${segment_size}" "${streaming_tasks}" "${simulate_args}" "${model}" \
                    -- simulate_set "${model}" "${exp}/simulate/${name}" "${name}" "${policies[@]}"
            done
        done
        drawn=${stream_models[${bidi_exp}]:-${stream_models[${unid_exp}]:-${stream_models[${bestow_exp}]:-}}}
        for name in "${stream_sets[@]}"; do
            draw_once simulate "${name}"
            policy=${simuleval_policy//STEP/${step}}
            once "${expdir}/simulate/${name}/.done_reading" "${drawn}" "${policy}" "${streaming_tasks}" \
                "${raw}/${name}"/{wav.scp,prompt,utt2task,.done} "data/${name}/ctm" \
                -- draw_reading "${drawn}" "${name}" "${policy}"
        done
        # One policy again, one session at a time, on the rows of stage 18: what computation adds to its latency.
        policy=${simuleval_policy//STEP/${step}}
        unset "stream_models[${bestow_exp}]"
        if [ -n "${download_model}" ]; then stream_models[${bestow_exp}]=${download_model}; fi
        for name in "${stream_sets[@]}"; do
            for exp in "${!stream_models[@]}"; do
                model=${stream_models[${exp}]}
                once "${exp}/clock/${name}/.done" "${raw}/${name}"/{wav.scp,text,prompt,utt2task,.done} "${policy}" \
                    "${segment_size}" "${streaming_tasks}" "${simulate_args}" "${simuleval_rows}" "${model}" \
                    -- simulate_set "${model}" "${exp}/clock/${name}" "${name}" "${policy}" --sessions 1 \
                    ${simuleval_rows:+--max_rows "${simuleval_rows}"}
            done
            if [ ${#stream_models[@]} -gt 0 ]; then draw_once clock "${name}"; fi
        done
    fi
fi

if begin_stage 20 "report"; then py -m espnet_bestow.bin.bestow_report --exp "${expdir}"; fi
end_stage
