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

# configure DIR LAYER...: DIR/train.yaml, which says how the training in DIR is made. Layers are configurations, options
# of bestow_train, and settings such as policy_conf.step=2, each over those before it.
configure() {
    local dir=$1 layer layers=() python=py
    shift
    for layer in "$@"; do
        if [[ ${layer} =~ ^[[:space:]]*-- ]]; then
            layers+=("--options=${layer}") python=warm_py
        elif [[ ${layer} =~ ^[a-z_.]+= ]]; then
            layers+=("--setting=${layer}")
        elif [ -n "${layer}" ]; then
            layers+=("--config=${layer}")
        fi
    done
    "${python}" -m espnet_bestow.bin.merge_configs "${layers[@]}" --output "${dir}/train.yaml"
}

# configure_offline: offline_config, which also says how audio and text are read in stages 4 to 10.
offline_configured=false
configure_offline() {
    if "${offline_configured}"; then return; fi
    need_file "${bestow_config}" "--bestow_config"
    if [ -n "${variant_config}" ]; then need_file "${variant_config}" "--variant_config"; fi
    configure "${bestow_exp}" "${of_all[@]}" "${bestow_args}"
    offline_configured=true
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
        --config "${offline_config}" --llm_conf "path=${llm_path}" "${data_options[@]}" \
        --train_shape_file "${logdir}/train.JOB.scp" --valid_shape_file "${logdir}/valid.JOB.scp" \
        --output_dir "${logdir}/stats.JOB"
    for ((job = 1; job <= jobs; job++)); do parts+=(--input_dir "${logdir}/stats.${job}"); done
    warm_py -m espnet2.bin.aggregate_stats_dirs "${parts[@]}" --output_dir "${stats_dir}" \
        --log_level WARNING
    log "statistics of $(wc -l <"${stats_dir}/train/speech_shape") training rows: ${stats_dir}"
}

# What statistics depend on: of the configuration only how audio and text are read.
stats_inputs() {
    printf '%s\n' "${raw}"/{"${train_set}","${valid_set}"}/{wav.scp,text,prompt,.done}
    printf '%s\n' "${llm_path}" "${llm_path}/tokenizer.json"
    values "${offline_config}" frontend frontend_conf template template_conf default_prompt normalize normalize_conf \
        model_conf.extract_feats_in_collect_stats
}

# What tells one training from another that must not be resumed in its place.
training_origin() {
    printf '%s\n' "${raw}"/{"${train_set}","${valid_set}"}/{wav.scp,text,src_text,prompt,utt2task,.done} "${llm_path}"
    printf '%s\n' "${stats_dir}"/{train,valid}/{speech_shape,text_shape} "${llm_path}/tokenizer.json"
}

ensure_stats() {
    need train_set valid_set
    configure_offline
    need_file "${raw}/${train_set}/wav.scp" "run stages 3 and 4"
    mapfile -t inputs < <(stats_inputs)
    once "${stats_dir}/.done" "${inputs[@]}" -- collect_stats
}

# train_model DIR SHAPES OPTION...: DIR/train.yaml says how, SHAPES/{train,valid}/*_shape with which rows, and the options
# with which weights to begin, unless the configuration names others.
train_model() {
    local dir=$1 shapes=$2 init kind file word log_file taken=true options=()
    shift 2
    init=$(values "${dir}/train.yaml" init_param)
    for word in "$@"; do
        if [[ ${word} == --* ]]; then taken=true; fi
        if [ "${word}" = --init_param ] && [ -n "${init}" ]; then taken=false; fi
        if "${taken}"; then options+=("${word}"); fi
    done
    local normalize=() stats_file=${stats_dir}/train/feats_stats.npz
    kind=$(values "${dir}/train.yaml" normalize)
    file=$(values "${dir}/train.yaml" normalize_conf.stats_file)
    if [ -z "${kind}" ] || [ "${kind}${file}" = global_mvn ]; then
        need_file "${stats_file}" "global_mvn needs it: model_conf: extract_feats_in_collect_stats: true, and stage 10"
        normalize=(--normalize global_mvn --normalize_conf "stats_file=${stats_file}")
    elif [ "${kind}${file}" = running_mvn ] && [ -f "${stats_file}" ]; then
        normalize=(--normalize_conf "stats_file=${stats_file}")
    fi
    set_data_options
    set_trainer
    log_file=${dir}/train.out
    if [ "${node_rank}" -gt 0 ]; then log_file=${dir}/train.${node_rank}.out; fi
    run_logged "${train_launcher}" "${log_file}" "${trainer[@]}" --config "${dir}/train.yaml" \
        --output_dir "${dir}" --resume true --llm_conf "path=${llm_path}" "${data_options[@]}" \
        --train_shape_file "${shapes}/train/speech_shape" \
        --train_shape_file "${shapes}/train/text_shape" \
        --valid_shape_file "${shapes}/valid/speech_shape" \
        --valid_shape_file "${shapes}/valid/text_shape" \
        "${normalize[@]}" \
        "${options[@]}"
}

# What may change when a training goes on: for how long, what is kept and shown, how rows are read and put together.
goes_on=(max_epoch patience num_iters_per_epoch keep_nbest_models log_interval num_att_plot use_tensorboard use_wandb
    num_workers max_cache_size batch_size batch_bins valid_batch_size valid_batch_bins accum_grad)

# keep_origin DIR ITEM...: refuse to resume in DIR a training that began with other data, models or options. Its weights
# would not be what its configuration says, or would not fit it.
keep_origin() {
    local dir=$1 now made
    shift
    made=$(values "${dir}/train.yaml" --but "${goes_on[@]}")
    now=$(fingerprint "$@" "${made}")
    if [ -f "${dir}/checkpoint.pth" ] && [ -f "${dir}/.origin" ] \
        && [ "$(cat "${dir}/.origin")" != "${now}" ]; then
        fail "the training in ${dir} began with other data, another LLM or other options: remove it or name a new one"
    fi
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

# pretrain_encoder DIR OPTION...: what a configuration for CTC changes leaves the encoder as it is.
pretrain_encoder() {
    local dir=$1
    shift
    keep_origin "${dir}" "${origin[@]}"
    one_row_each "${dir}"
    train_model "${dir}" "${dir}/shapes" "$@"
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
    set_init "${asr_exp}/train.yaml"
    keep_origin "${asr_exp}" "${origin[@]}" "${llm_path}/.done" "${init[1]-no CTC}"
    one_row_each "${asr_exp}"
    train_model "${asr_exp}" "${asr_exp}/shapes" "${init[@]}"
}

train_bestow() {
    local init
    if [ -n "${asr_config}" ]; then
        need_file "${asr_exp}/valid.acc.best.pth" "run stage 9"
        init=(--init_param "${asr_exp}/valid.acc.best.pth")
    else
        set_init "${offline_config}"
    fi
    keep_origin "${bestow_exp}" "${origin[@]}" "${llm_path}/.done" "${init[1]-no CTC}"
    train_model "${bestow_exp}" "${stats_dir}" "${init[@]}"
}
