#!/usr/bin/env bash
# Run commands with logs: locally, or through a Kaldi-style launcher (run.pl, slurm.pl, queue.pl).

# Background jobs ignore Ctrl-C, so the script that dies must take them along.
stop_jobs() {
    local pids
    pids=$(jobs -p)
    # shellcheck disable=SC2086  # one word per job
    if [ -n "${pids}" ]; then kill ${pids} 2>/dev/null || true; fi
}
at_exit=(stop_jobs)

run_at_exit() {
    local command
    for command in "${at_exit[@]}"; do "${command}"; done
}
trap run_at_exit EXIT

show_failure() {
    echo "error: exit status $1, last lines of $2:" >&2
    tail -n 20 "$2" | sed 's/^/    /' >&2
    exit 1
}

# watch_rows TOTAL PATTERN: keep saying how many lines the files have that match PATTERN.
watch_rows() {
    while sleep 1; do
        # shellcheck disable=SC2086  # a pattern, or several
        printf '\r%d of %d rows' "$(cat $2 2>/dev/null | wc -l)" "$1" >&2
    done
}

# run_jobs LAUNCHER N LOG COMMAND...: N parallel commands; JOB in COMMAND and LOG becomes 1..N.
run_jobs() {
    local launcher=() jobs=$2 log=$3 job status pids=()
    read -r -a launcher <<<"$1"
    shift 3
    mkdir -p "${log%/*}"
    if [ ${#launcher[@]} -gt 0 ]; then
        "${launcher[@]}" "JOB=1:${jobs}" "${log}" "$@"
        return
    fi
    for ((job = 1; job <= jobs; job++)); do
        "${@//JOB/${job}}" >"${log//JOB/${job}}" 2>&1 &
        pids+=($!)
    done
    for ((job = 1; job <= jobs; job++)); do
        status=0
        wait "${pids[job - 1]}" || status=$?
        if [ "${status}" -ne 0 ]; then show_failure "${status}" "${log//JOB/${job}}"; fi
    done
}

# watched_jobs TOTAL PATTERN LAUNCHER N LOG COMMAND...: run_jobs with the count of watch_rows.
watched_jobs() {
    local total=$1 pattern=$2 watcher
    shift 2
    watch_rows "${total}" "${pattern}" &
    watcher=$!
    run_jobs "$@"
    kill "${watcher}"
    wait "${watcher}" 2>/dev/null || true
    printf '\r' >&2
}

# run_logged LAUNCHER LOG COMMAND...: one long command; its stdout is shown, all goes to LOG.
run_logged() {
    local launcher=() log=$2 status
    read -r -a launcher <<<"$1"
    shift 2
    mkdir -p "${log%/*}"
    if [ ${#launcher[@]} -gt 0 ]; then
        "${launcher[@]}" "${log}" "$@"
        return
    fi
    echo "# $*" >"${log}"
    status=0
    # shellcheck disable=SC2094  # both append
    "$@" 2>>"${log}" | tee -a "${log}" || status=$?
    if [ "${status}" -ne 0 ]; then show_failure "${status}" "${log}"; fi
}

# split_keys FILE N OUT: deal the lines of FILE to the files OUT with JOB replaced by 1..N.
split_keys() {
    mkdir -p "${3%/*}"
    awk -v jobs="$2" -v out="$3" '{
        file = out; sub(/JOB/, (NR - 1) % jobs + 1, file); print > file
    }' "$1"
}

# at_most N FILE: N, or the number of lines of FILE if that is smaller.
at_most() {
    local lines
    lines=$(wc -l <"$2")
    echo $((lines < $1 ? lines : $1))
}
