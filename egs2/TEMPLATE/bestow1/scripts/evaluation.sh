#!/usr/bin/env bash
# Steps of stages 12 to 15: decoding, scores, publishing. Sourced by bestow.sh.
# shellcheck disable=SC2154  # the options and names of bestow.sh

# decode_set NAME: hypotheses in <exp>/<tag>/<set>/{text,token,score}
decode_set() {
    local dir=${bestow_exp}/${inference_tag}/$1 data=${raw}/$1 jobs job file ngpu_decode=0
    local logdir=${dir}/logdir
    if [ "${decode_device}" = cuda ]; then ngpu_decode=1; fi
    rm -rf "${logdir}"
    jobs=$(at_most "${inference_nj}" "${data}/wav.scp")
    split_keys "${data}/wav.scp" "${jobs}" "${logdir}/keys.JOB.scp"
    watched_jobs "$(wc -l <"${data}/wav.scp")" "${logdir}/output.*/1best_recog/text" \
        "${decode_launcher}" "${jobs}" "${logdir}/inference.JOB.log" "${warm_words[@]}" \
        -m espnet_bestow.bin.bestow_inference --config "${inference_config}" \
        --ngpu "${ngpu_decode}" --data_path_and_name_and_type "${data}/wav.scp,speech,sound" \
        --data_path_and_name_and_type "${data}/prompt,prompt,text" \
        --key_file "${logdir}/keys.JOB.scp" "${model_options[@]}" \
        --output_dir "${logdir}/output.JOB" "${inference_words[@]}"
    for file in text token score; do
        for ((job = 1; job <= jobs; job++)); do
            if [ -f "${logdir}/output.${job}/1best_recog/${file}" ]; then
                cat "${logdir}/output.${job}/1best_recog/${file}"
            fi
        done | LC_ALL=C sort >"${dir}/${file}"
    done
    log "$1: $(wc -l <"${dir}/text") of $(wc -l <"${data}/wav.scp") rows decoded, ${dir}/text"
    [ "$(wc -l <"${dir}/text")" -eq "$(wc -l <"${data}/wav.scp")" ] || fail "$1: not all rows were decoded, see ${logdir}"
}

score_set() {
    warm_py -m espnet_bestow.bin.bestow_score --data_dir "${raw}/$1" \
        --hyp "${bestow_exp}/${inference_tag}/$1/text" --test_set "$1" --system "${system}" \
        --results "${expdir}/results.json" --command "${command_line}"
}

pack() {
    warm_py -m espnet_bestow.bin.bestow_pack --exp "${bestow_exp}" --outpath "${packed}" \
        --model_file "${inference_model}.pth"
}

upload() {
    local results=()
    if [ -f "${expdir}/RESULTS.md" ]; then results=(--results "${expdir}/RESULTS.md"); fi
    warm_py -m espnet_bestow.bin.bestow_upload --packed "${packed}" --hf_repo "${hf_repo}" \
        "${results[@]}"
}
