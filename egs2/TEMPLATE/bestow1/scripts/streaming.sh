#!/usr/bin/env bash
# Steps of stages 16 to 20: streaming models, SimulEval, latency-quality curves. Sourced by bestow.sh.
# shellcheck disable=SC2154  # the options and names of bestow.sh

# set_step: the number in `step`: --streaming_step, or what the training data says about how fast people speak.
set_step() {
    step=${streaming_step}
    if [ -z "${step}" ]; then
        need_file "${stats_dir}/train/text_shape" "run stage 10, or give --streaming_step"
        step=$(py -m espnet_bestow.bin.frames_per_token --stats_dir "${stats_dir}/train" --fs "${fs}" \
            --utt2task "${raw}/${train_set}/utt2task" --tasks "${streaming_words[@]}")
        log "step: ${step}"
        step=${step%% *}
    fi
}

# train_bidi: every part goes on from the offline model.
train_bidi() {
    keep_origin "${bidi_exp}" "${origin[@]}" "${offline_weights}"
    train_model "${bidi_exp}" "${stats_dir}" --init_param "${offline_weights}"
}

# train_unid: every part goes on from S-bidi, which has learnt to write before it has heard all, or from the offline
# model if there is no S-bidi, if these have the streaming encoder already; with a teacher_weight in the configuration,
# that model is the teacher. Otherwise connector and LLM go on; the new encoder is pre-trained with CTC if
# --unid_ctc_config says how, and with the offline model as its teacher if --unid_teacher_weight says how much.
train_unid() {
    local init=("${before_unid}") taught=() weights='' offline_encoder encoder teacher_weight ctc=()
    keep_origin "${unid_exp}" "${origin[@]}" "${offline_weights}" "${before_unid}"
    offline_encoder=$(values "${offline_config}" encoder)
    encoder=$(values "${unid_exp}/train.yaml" encoder)
    teacher_weight=$(values "${unid_exp}/train.yaml" model_conf.teacher_weight)
    if [ "${encoder}" = "${offline_encoder}" ]; then
        if [ -n "${teacher_weight}" ]; then
            taught=(--model_conf "teacher=$(dirname "${before_unid}")")
        fi
    else
        init=("${before_unid}:connector:connector" "${before_unid}:llm:llm")
        if [ -n "${unid_ctc_config}" ]; then
            weights=${unid_exp}_ctc/valid.loss.best.pth
            if [ -n "${unid_init}" ]; then ctc+=(--init_param "${unid_parts[@]/#/${offline_weights}:}"); fi
            if [ -n "${unid_teacher_weight}" ]; then
                ctc+=(--model_conf "teacher=${bestow_exp}" --model_conf "teacher_weight=${unid_teacher_weight}")
            fi
            configure "${unid_exp}_ctc" "${unid_exp}/train.yaml" "${unid_ctc_config}" "${ctc_args}"
            once "${unid_exp}_ctc/.done" "${origin[@]}" "${unid_exp}_ctc/train.yaml" "${ctc[*]}" "${offline_weights}" \
                -- pretrain_encoder "${unid_exp}_ctc" "${ctc[@]}"
            init+=("${weights}:features:features" "${weights}:encoder:encoder")
            add_ctc_head "${unid_exp}/train.yaml" "${weights}"
        fi
    fi
    train_model "${unid_exp}" "${stats_dir}" --init_param "${init[@]}" "${taught[@]}"
}

# empty_but_stamps DIR: what another model or another policy wrote is no part of a curve.
empty_but_stamps() { find "$1" -mindepth 1 -maxdepth 1 ! -name '.done*' -exec rm -rf {} +; }

# simuleval_set MODEL DIR SET POLICY: the real command over one test set, in parallel jobs.
simuleval_set() {
    local model=$1 dir=$2 data=${raw}/$3 policy=$4 lists=$2/lists logdir jobs lines
    if ! "${same_inputs}"; then empty_but_stamps "${dir}"; fi
    py -m espnet_bestow.bin.simuleval_lists --data_dir "${data}" --output_dir "${lists}" \
        --tasks "${streaming_words[@]}" ${simuleval_rows:+--max_rows "${simuleval_rows}"}
    lines=$(wc -l <"${lists}/source")
    jobs=$(at_most "${inference_nj}" "${lists}/source")
    # Another number of jobs deals the rows otherwise: nothing to resume.
    logdir=${dir}/logdir/${jobs}
    mkdir -p "${logdir}"
    # A killed run ends in half a line, which --continue-unfinished cannot read.
    find "${logdir}" -name instances.log -exec sed -i '$ { /}$/!d }' {} +
    # shellcheck disable=SC2016  # expanded in each job, where JOB is its number
    watched_jobs "${lines}" "${logdir}/shard.*/instances.log" "${decode_launcher}" "${jobs}" \
        "${logdir}/simuleval.JOB.log" bash -c 'first=$1 last=$2; shift 2
            exec "$@" --start-index $((first)) --end-index $((last))' simuleval_shard \
        "(JOB - 1) * ${lines} / ${jobs}" "JOB * ${lines} / ${jobs}" \
        "${warm_words[@]}" -m simuleval.cli --agent-class espnet_bestow.simul.BestowAgent \
        --dataloader bestow --dataloader-class espnet_bestow.simul.AudioLoader \
        --source "${lists}/source" --target "${lists}/target" --tgt-lang "${lists}/prompt" \
        --source-segment-size "${segment_size}" --output "${logdir}/shard.JOB" --no-scoring --no-progress-bar \
        --continue-unfinished --bestow-model "${model}" --bestow-policy "${policy}" \
        --bestow-device "${decode_device}" "${simuleval_words[@]}"
    log "${model}, ${policy}, $3:"
    warm_py -m espnet_bestow.bin.simuleval_results --shards "${logdir}"/shard.* --lists "${lists}" \
        --policy "${policy}" --output_dir "${dir}"
}

# simulate_set MODEL DIR SET POLICY... [OPTION...]: our own simulator, all policies of one model over one test set.
simulate_set() {
    local model=$1 dir=$2 data=${raw}/$3 logdir jobs
    shift 3
    jobs=$(at_most "${inference_nj}" "${data}/wav.scp")
    logdir=${dir}/logdir/${jobs}
    if ! "${same_inputs}"; then empty_but_stamps "${dir}"; fi
    split_keys "${data}/wav.scp" "${jobs}" "${logdir}/keys.JOB.scp"
    run_jobs "${decode_launcher}" "${jobs}" "${logdir}/simulate.JOB.log" "${warm_words[@]}" \
        -m espnet_bestow.bin.bestow_simulate --model "${model}" --data_dir "${data}" \
        --key_file "${logdir}/keys.JOB.scp" --tasks "${streaming_words[@]}" \
        --segment_ms "${segment_size}" --device "${decode_device}" --output_dir "${logdir}/output.JOB" \
        "${simulate_words[@]}" --policies "$@"
    py -m espnet_bestow.bin.merge_instances --inputs "${logdir}"/output.* --output_dir "${dir}" >/dev/null
}

# draw_curves FOLDER SET: all that lies in FOLDER/SET of the models, as points and plots.
draw_curves() {
    local logs=() exp
    for exp in "${!stream_models[@]}"; do
        if [ -d "${exp}/$1/$2" ]; then logs+=("$(basename "${exp}")=${exp}/$1/$2"); fi
    done
    rm -f "${expdir}/$1/$2/curves.json"
    warm_py -m espnet_bestow.bin.bestow_curve --logs "${logs[@]}" --test_set "$2" --output_dir "${expdir}/$1/$2" \
        --command_line "${command_line}"
}

# draw_once FOLDER SET: draw_curves, unless these logs are drawn already.
draw_once() {
    local stamps=() exp
    for exp in "${!stream_models[@]}"; do stamps+=("${exp}/$1/$2/.done"); done
    once "${expdir}/$1/$2/.done" "${stamps[@]}" -- draw_curves "$1" "$2"
}

# draw_reading MODEL SET POLICY: what the first row of each streamed task saw, looked at, and when it was written.
draw_reading() {
    local keys spoken=()
    if [ -f "data/$2/ctm" ]; then spoken=(--ctm "data/$2/ctm"); fi
    mapfile -t keys < <(awk -v wanted=" ${streaming_tasks} " \
        '{ family = $2; sub(/_.*/, "", family) }
        (index(wanted, " " $2 " ") || index(wanted, " " family " ")) && !seen[$2]++ { print $1 }' "${raw}/$2/utt2task")
    warm_py -m espnet_bestow.bin.bestow_read_write --model "$1" --data_dir "${raw}/$2" --key "${keys[@]}" --policy "$3" \
        "${spoken[@]}" --segment_ms "${segment_size}" --device "${decode_device}" --output "${expdir}/simulate/$2"
}
