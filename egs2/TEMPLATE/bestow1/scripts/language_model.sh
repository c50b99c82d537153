#!/usr/bin/env bash
# Steps of stages 6 to 8: the small language model trained on text. Sourced by bestow.sh.
# shellcheck disable=SC2154  # the options and names of bestow.sh

count_text() {
    local file
    for file in "${llm_train_text}" "${llm_valid_text}"; do
        awk -v file="${file}" '
            { words += NF; if (NF > longest) longest = NF; for (i = 1; i <= NF; i++) seen[$i] }
            END {
                printf "%s: %d lines, %d words, %d different, longest line %d words\n",
                    file, NR, words, length(seen), longest
            }' "${file}"
    done | tee "${llm_path}_stats.txt"
}

train_llm() {
    local device=()
    if [ "${ngpu}" -gt 0 ]; then device=(--device cuda); fi
    run_logged "${train_launcher}" "${llm_path}/train.log" "${threads[@]}" "${warm_words[@]}" \
        -m espnet_bestow.bin.text_llm_train --config "${llm_config}" --tokenizer "${tokenizer}" \
        --train_text "${llm_train_text}" --valid_text "${llm_valid_text}" \
        --output_dir "${llm_path}" --resume "${same_inputs}" "${device[@]}"
}

perplexity() {
    warm_py -m espnet_bestow.bin.text_llm_perplexity --llm "${llm_path}" --text "${llm_valid_text}" \
        --output "${llm_path}/perplexity.json"
}
