#!/usr/bin/env bash
# Steps of stages 9 to 11: statistics and training. Sourced by bestow.sh.
# shellcheck disable=SC2154  # the options and names of bestow.sh

# Options naming the training and validation data, in the array `data_options`.
set_data_options() {
    local row file mode dir
    data_options=()
    for row in wav.scp,speech,sound text,text,text prompt,prompt,text utt2task,task,text \
        src_text,src_text,text; do
        file=${row%%,*}
        # ESPnet wants the same names in both sets.
        if [ ! -f "${raw}/${train_set}/${file}" ] || [ ! -f "${raw}/${valid_set}/${file}" ]; then
            continue
        fi
        for mode in train valid; do
            if [ ${mode} = train ]; then dir=${raw}/${train_set}; else dir=${raw}/${valid_set}; fi
            data_options+=("--${mode}_data_path_and_name_and_type" "${dir}/${row}")
        done
    done
}

# The training program with the options of its processes, in the array `trainer`.
set_trainer() {
    local module=espnet_bestow.bin.bestow_train processes=${nproc} backend=gloo
    if [ "${ngpu}" -gt 0 ]; then processes=${ngpu} backend=nccl; fi
    if [ $((processes * num_nodes)) -eq 1 ]; then
        trainer=("${threads[@]}" "${warm_words[@]}" -m "${module}" --ngpu "${ngpu}")
        return
    fi
    trainer=("${threads[@]}" "${warm_words[@]}" -m torch.distributed.run --nproc_per_node "${processes}")
    if [ "${num_nodes}" -eq 1 ]; then
        trainer+=(--standalone)
    else
        trainer+=(--nnodes "${num_nodes}" --node_rank "${node_rank}" \
            --master_addr "${master_addr}" --master_port "${master_port}")
    fi
    trainer+=(--no-python "${warm_words[@]}" -m "${module}" --ngpu $((ngpu > 0)) --dist_backend "${backend}" \
        --multiprocessing_distributed false)
}

collect_stats() {
    local logdir=${stats_dir}/logdir jobs job parts=()
    set_data_options
    rm -rf "${logdir}"
    jobs=$(at_most "${nj}" "${raw}/${valid_set}/wav.scp")
    jobs=$(at_most "${jobs}" "${raw}/${train_set}/wav.scp")
    split_keys "${raw}/${train_set}/wav.scp" "${jobs}" "${logdir}/train.JOB.scp"
    split_keys "${raw}/${valid_set}/wav.scp" "${jobs}" "${logdir}/valid.JOB.scp"
    watched_jobs "$(cat "${raw}"/{"${train_set}","${valid_set}"}/wav.scp | wc -l)" \
        "${logdir}/stats.*/*/speech_shape" "${train_cmd:-}" "${jobs}" "${logdir}/stats.JOB.log" "${warm_words[@]}" \
        -m espnet_bestow.bin.bestow_train --collect_stats true --ngpu 0 \
        --config "${bestow_config}" --llm_conf "path=${llm_path}" "${data_options[@]}" \
        --train_shape_file "${logdir}/train.JOB.scp" --valid_shape_file "${logdir}/valid.JOB.scp" \
        --output_dir "${logdir}/stats.JOB" "${bestow_words[@]}"
    for ((job = 1; job <= jobs; job++)); do parts+=(--input_dir "${logdir}/stats.${job}"); done
    warm_py -m espnet2.bin.aggregate_stats_dirs "${parts[@]}" --output_dir "${stats_dir}" \
        --log_level WARNING
    log "statistics of $(wc -l <"${stats_dir}/train/speech_shape") training rows: ${stats_dir}"
}

# What statistics depend on: of the configuration only how audio and text are read.
stats_inputs() {
    printf '%s\n' "${raw}/${train_set}"/{wav.scp,text,prompt} "${raw}/${valid_set}"/{wav.scp,text,prompt}
    printf '%s\n' "${llm_path}" "${llm_path}/tokenizer.json"
    values "${bestow_config}" frontend frontend_conf template template_conf default_prompt normalize normalize_conf
    grep -oE -e '--(frontend|template|default_prompt)[^-]*' <<<"${bestow_args}" || true
}

# What tells one training from another that must not be resumed in its place.
training_origin() {
    printf '%s\n' "${raw}"/{"${train_set}","${valid_set}"}/{wav.scp,text,src_text,prompt,utt2task} "${llm_path}"
    printf '%s\n' "${stats_dir}"/{train,valid}/{speech_shape,text_shape} "${llm_path}/tokenizer.json"
}

ensure_stats() {
    need train_set valid_set
    need_file "${bestow_config}" "--bestow_config"
    need_file "${raw}/${train_set}/wav.scp" "run stages 3 and 4"
    mapfile -t inputs < <(stats_inputs)
    once "${stats_dir}/.done" "${inputs[@]}" -- collect_stats
}

# train_model CONFIG DIR SHAPES OPTION...: SHAPES/{train,valid}/*_shape say which rows are used.
train_model() {
    local config=$1 dir=$2 shapes=$3
    shift 3
    local kind normalize=() stats_file=${stats_dir}/train/feats_stats.npz
    kind=$(values "${config}" normalize)
    if [ -z "${kind}" ]; then
        normalize=(--normalize global_mvn --normalize_conf "stats_file=${stats_file}")
    elif [ "${kind}" = running_mvn ] && [ -f "${stats_file}" ]; then
        normalize=(--normalize_conf "stats_file=${stats_file}")
    fi
    set_data_options
    set_trainer
    run_logged "${cuda_cmd:-}" "${dir}/train.out" "${trainer[@]}" --config "${config}" \
        --output_dir "${dir}" --resume true --llm_conf "path=${llm_path}" "${data_options[@]}" \
        --train_shape_file "${shapes}/train/speech_shape" \
        --train_shape_file "${shapes}/train/text_shape" \
        --valid_shape_file "${shapes}/valid/speech_shape" \
        --valid_shape_file "${shapes}/valid/text_shape" \
        "${normalize[@]}" \
        "$@"
}

# keep_origin DIR ITEM...: refuse to resume in DIR a training that began with other data or models.
# A changed configuration may be resumed, as in ESPnet: that is how a training gets more epochs.
keep_origin() {
    local dir=$1 now
    shift
    now=$(fingerprint "$@")
    if [ -f "${dir}/checkpoint.pth" ] && [ -f "${dir}/.origin" ] \
        && [ "$(cat "${dir}/.origin")" != "${now}" ]; then
        fail "the training in ${dir} began with other data or another LLM: remove it or name a new one"
    fi
    mkdir -p "${dir}"
    echo "${now}" >"${dir}/.origin"
}

# one_row_each DIR: of the rows about one recording one, in DIR/shapes: its transcript if there is one, else the first.
one_row_each() {
    local mode name set transcripts
    for mode in train valid; do
        if [ ${mode} = train ]; then set=${train_set}; else set=${valid_set}; fi
        mkdir -p "$1/shapes/${mode}"
        transcripts=/dev/null
        if [ -f "${raw}/${set}/src_text" ]; then transcripts=$1/shapes/${mode}/transcripts; fi
        if [ "${transcripts}" != /dev/null ]; then
            # Rows whose answer is what was said.
            awk 'NR == FNR { said[$0] = 1; next } $0 in said { print $1 }' \
                "${raw}/${set}/src_text" "${raw}/${set}/text" >"${transcripts}"
        fi
        for name in speech text; do
            awk 'FILENAME == ARGV[1] { transcript[$1] = 1; next }
                FILENAME == ARGV[2] { key = $1; $1 = ""; if (!($0 in one) || (key in transcript && !good[$0])) one[$0] = key
                    if (key in transcript) good[$0] = 1; next }
                FNR == 1 { for (wav in one) chosen[one[wav]] = 1 }
                $1 in chosen' "${transcripts}" "${raw}/${set}/wav.scp" "${stats_dir}/${mode}/${name}_shape" \
                >"$1/shapes/${mode}/${name}_shape"
        done
    done
}

# pretrain_encoder CONFIG CTC_CONFIG DIR: only what differs is written in CTC_CONFIG, so the encoder is CONFIG's.
pretrain_encoder() {
    keep_origin "$3" "${origin[@]}"
    py -m espnet_bestow.bin.merge_configs "$1" "$2" --output "$3/train.yaml"
    one_row_each "$3"
    train_model "$3/train.yaml" "$3" "$3/shapes" "${ctc_words[@]}"
}

# add_ctc_head CONFIG WEIGHTS: a model with the auxiliary CTC loss begins with the head in WEIGHTS, too.
add_ctc_head() {
    local weight
    weight=$(values "$1" model_conf.ctc_weight)
    if [[ ${weight} == *[1-9]* ]]; then init+=("$2:ctc:ctc"); fi
}

# set_init CONFIG: in `init`, with which weights a training by CONFIG begins: those of pretrain_encoder, if any.
set_init() {
    init=()
    if [ -z "${ctc_config}" ]; then return; fi
    local weights=${ctc_exp}/valid.loss.best.pth
    need_file "${weights}" "run stage 9"
    # A pre-encoder is part of the features.
    init=(--init_param "${weights}:features:features" "${weights}:encoder:encoder")
    add_ctc_head "$1" "${weights}"
}

# pretrain_asr: the whole model on transcripts alone. With one task it finds out where to look in fewer steps.
pretrain_asr() {
    local init
    mkdir -p "${asr_exp}"
    py -m espnet_bestow.bin.merge_configs "${bestow_config}" "${asr_config}" --output "${asr_exp}/train.yaml"
    set_init "${asr_exp}/train.yaml"
    keep_origin "${asr_exp}" "${origin[@]}" "${llm_path}/.done" "${init[1]-no CTC}"
    one_row_each "${asr_exp}"
    train_model "${asr_exp}/train.yaml" "${asr_exp}" "${asr_exp}/shapes" "${init[@]}" "${asr_words[@]}"
}

train_bestow() {
    local init
    if [ -n "${asr_config}" ]; then
        need_file "${asr_exp}/valid.acc.best.pth" "run stage 9"
        init=(--init_param "${asr_exp}/valid.acc.best.pth")
    else
        set_init "${bestow_config}"
    fi
    keep_origin "${bestow_exp}" "${origin[@]}" "${llm_path}/.done" "${init[1]-no CTC}"
    train_model "${bestow_config}" "${bestow_exp}" "${stats_dir}" "${init[@]}" "${bestow_words[@]}"
}
