#!/usr/bin/env bash
# Steps of stages 1 to 5: data directories and tokens. Sourced by bestow.sh.
# shellcheck disable=SC2154  # the options and names of bestow.sh

# Tables of a data directory, for fingerprints.
tables() {
    printf '%s\n' "$1"/{wav.scp,text,segments,prompt,utt2task,src_text,rejected.tsv}
    printf '%s\n' "$1/${text_file}" "$1/${src_text_file}"
}

perturb() {
    py -m espnet_bestow.bin.perturb_data_dir --data_dir "data/${train_set}" \
        --output_dir "data/${train_set}_sp" --speeds "${speeds[@]}" --fs "${fs}" --nj "${nj}" \
        --max_seconds "${max_raw_duration}" --text_file "${text_file}" \
        --src_text_file "${src_text_file}"
}

# format_set SOURCE NAME
format_set() {
    local names=(--text_file "${text_file}" --src_text_file "${src_text_file}")
    # Perturbed sets have the standard file names already.
    if [ "$1" != "$2" ]; then names=(); fi
    py -m espnet_bestow.bin.format_data_dir --data_dir "data/$1" --output_dir "${raw}/org/$2" \
        --fs "${fs}" --nj "${nj}" --max_seconds "${max_raw_duration}" --task "${default_task}" \
        "${names[@]}"
}

# filter_set NAME OPTION...: the options say which LLM's context the texts must fit.
filter_set() {
    local name=$1 limits=(--min_wav_duration 0 --max_wav_duration "${max_raw_duration}")
    shift
    # Stage 4 brings back what stage 5 left out.
    if [ "$1" != --tokenizer ]; then rm -f "${raw}/${name}/.done_tokens"; fi
    if [ "${name}" = "${train_set}" ] || [ "${name}" = "${valid_set}" ]; then
        limits=(--min_wav_duration "${min_wav_duration}" --max_wav_duration "${max_wav_duration}")
    fi
    warm_py -m espnet_bestow.bin.filter_data_dir --data_dir "${raw}/org/${name}" \
        --output_dir "${raw}/${name}" --fs "${fs}" --skip_bad_utts "${skip_bad_utts}" \
        "${limits[@]}" --bestow_config "${offline_config}" "$@"
}

# filter_all STAMP OPTION...: up to nj sets at a time, since most of a set's seconds are imports.
filter_all() {
    local stamp=$1 name pid inputs template running=() failed=0
    shift
    configure_offline
    template=$(values "${offline_config}" template template_conf)
    for name in "${train_set}" "${valid_set}" "${tests[@]}"; do
        if [ ${#running[@]} -ge "${nj}" ]; then
            wait "${running[0]}" || failed=$((failed + 1))
            running=("${running[@]:1}")
        fi
        mapfile -t inputs < <(tables "${raw}/org/${name}")
        if [ "$1" = --tokenizer ]; then inputs+=("$2/tokenizer.json"); fi
        once "${raw}/${name}/${stamp}" "${inputs[@]}" "${raw}/org/${name}/.done" "$@" "${template}" \
            "${fs} ${min_wav_duration} ${max_wav_duration} ${max_raw_duration}" \
            "${skip_bad_utts}" -- filter_set "${name}" "$@" &
        running+=($!)
    done
    for pid in "${running[@]}"; do wait "${pid}" || failed=$((failed + 1)); done
    if [ ${failed} -gt 0 ]; then fail "stage ${current_stage}: ${failed} sets could not be used, see above"; fi
}

# Words of the training and validation sets without their ids, each line once.
words_of() {
    local file
    for file in "$1"/{text,src_text,prompt}; do
        if [ -f "${file}" ]; then sed 's/^[^ ]* *//' "${file}"; fi
    done | awk 'NF && !seen[$0]++'
}

# write_words: the texts of the sets as they are now, for tokens and language model.
write_words() {
    mkdir -p "${tokenizer}/text"
    words_of "${raw}/${train_set}" >"${tokenizer}/text/train.txt"
    words_of "${raw}/${valid_set}" >"${tokenizer}/text/valid.txt"
}

train_tokens() {
    local text=${tokenizer}/text read=()
    write_words
    # Instructions as often as they are given: each stands before every answer, so it should take few tokens.
    if [ -f "${raw}/${train_set}/prompt" ]; then
        sed 's/^[^ ]* *//' "${raw}/${train_set}/prompt" | awk NF >"${text}/prompts.txt"
        read+=(--text "${text}/prompts.txt")
    fi
    if [ -n "${lm_train_text}" ]; then
        cp "${lm_train_text}" "${text}/lm_train.txt"
        read+=(--text "${lm_train_text}")
    fi
    warm_py -m espnet_bestow.bin.train_tokenizer --text "${text}/train.txt" "${read[@]}" --vocab_size "${nbpe}" \
        --output_dir "${tokenizer}"
}
