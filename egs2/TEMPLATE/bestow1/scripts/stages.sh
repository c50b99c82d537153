#!/usr/bin/env bash
# Stage headers with times, and stamps that make re-running a finished step harmless and quick.
# Uses the options stage, stop_stage, skip_stages and python of the calling script.
# shellcheck disable=SC2154

current_stage=
stage_start=0

clock() { printf '%d:%02d:%02d' $(($1 / 3600)) $(($1 / 60 % 60)) $(($1 % 60)); }

log() { echo "$*"; }

fail() {
    echo "error: $*" >&2
    exit 1
}

# begin_stage NUMBER NAME: succeed, with a header, if the stage is to be run.
begin_stage() {
    end_stage
    if (($1 < stage || $1 > stop_stage)) || [[ " ${skip_stages//,/ } " == *" $1 "* ]]; then
        return 1
    fi
    current_stage=$1
    stage_start=${SECONDS}
    log "=== stage $1: $2 (at $(clock "${SECONDS}"))"
}

end_stage() {
    if [ -n "${current_stage}" ]; then
        log "=== stage ${current_stage} finished in $(clock $((SECONDS - stage_start)))"
    fi
    current_stage=
}

# fingerprint ITEM...: a hash of the contents of the items that are files and of the other words.
fingerprint() {
    local item
    for item in "$@"; do
        echo "${item}"
        if [ -f "${item}" ]; then cksum <"${item}"; fi
    done | cksum
}

# Whether the command that `once` runs was begun before with the same items (and can be resumed).
# shellcheck disable=SC2034
same_inputs=false

# once STAMP ITEM... -- COMMAND...: run COMMAND unless STAMP says that it was done with these ITEMs.
once() {
    local stamp=$1 items=() now
    shift
    while [ "$1" != -- ]; do items+=("$1"); shift; done
    shift
    now=$(fingerprint "${items[@]}")
    if [ -f "${stamp}" ] && [ "$(cat "${stamp}")" = "${now}" ]; then
        log "already done (${stamp})"
        return 0
    fi
    # shellcheck disable=SC2034
    same_inputs=false
    if [ -f "${stamp}.begun" ] && [ "$(cat "${stamp}.begun")" = "${now}" ]; then
        # shellcheck disable=SC2034
        same_inputs=true
    fi
    mkdir -p "${stamp%/*}"
    rm -f "${stamp}"
    echo "${now}" >"${stamp}.begun"
    "$@"
    # Inputs are hashed before the command: what it changes in them must not count as new. Several machines may stamp.
    echo "${now}" >"${stamp}"
    rm -f "${stamp}.begun"
}

need() {
    local name
    for name in "$@"; do
        [ -n "${!name}" ] || fail "stage ${current_stage} needs --${name}"
    done
}

need_file() { [ -f "$1" ] || fail "stage ${current_stage}: no file $1 (${2:-run the earlier stages})"; }

py() { "${python_words[@]}" "$@"; }

# values CONFIG PLACE...: what a configuration says, a line for each place.
values() { py -m espnet_bestow.bin.config_values "$@"; }
