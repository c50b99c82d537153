#!/usr/bin/env bash
# Run commands with logs: locally, or through a Kaldi-style launcher (run.pl, slurm.pl, queue.pl).

# Background jobs ignore Ctrl-C, so the script that dies must take them along.
stop_jobs() {
    local pids
    pids=$(jobs -p)
    # shellcheck disable=SC2086  # one word per job
    if [ -n "${pids}" ]; then kill ${pids} 2>/dev/null || true; fi
}
trap stop_jobs EXIT

show_failure() {
    echo "error: exit status $1, last lines of $2:" >&2
    tail -n 20 "$2" | sed 's/^/    /' >&2
    exit 1
}

# run_jobs LAUNCHER N LOG COMMAND...: N parallel commands; JOB in COMMAND and LOG becomes 1..N.
# Without a launcher they run here, and the progress bar of the first one is shown.
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
        if [ "${job}" -eq 1 ]; then
            : >"${log//JOB/1}"
            # shellcheck disable=SC2094  # both append
            "${@//JOB/1}" >>"${log//JOB/1}" 2> >(tee -a "${log//JOB/1}" >&2) &
        else
            "${@//JOB/${job}}" >"${log//JOB/${job}}" 2>&1 &
        fi
        pids+=($!)
    done
    for ((job = 1; job <= jobs; job++)); do
        status=0
        wait "${pids[job - 1]}" || status=$?
        if [ "${status}" -ne 0 ]; then
            show_failure "${status}" "${log//JOB/${job}}"
        fi
    done
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
