#!/usr/bin/env bash
# Command line options for recipe scripts: every `name=default  # help` line between the markers
# "# options begin" and "# options end" of the calling script is an option --name.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "error: the recipes need bash 4.4 or newer, this is ${BASH_VERSION}" >&2
    exit 2
fi

# Print "name|default|help" for each option of a script, and "||heading" for its headings.
list_options() {
    sed -n '/^# options begin/,/^# options end/p' "$1" | awk -F '  # ' '
        /^[a-z][a-z0-9_]*=/ {
            name = $1; sub(/=.*/, "", name)
            value = $1; sub(/^[^=]*=/, "", value); gsub(/^"|"$/, "", value)
            print name "|" value "|" $2
        }
        /^## / { print "||" substr($0, 4) }'
}

print_help() {
    local name value help
    echo "Usage: ${1##*/} [--option value]..."
    while IFS='|' read -r name value help; do
        if [ -z "${name}" ]; then
            printf '\n%s\n' "${help}"
        else
            printf '  --%-23s %s (default: %s)\n' "${name}" "${help}" "${value:-none}"
        fi
    done < <(list_options "$1")
}

option_error() {
    echo "error: $*" >&2
    exit 2
}

# check_value NAME DEFAULT VALUE: the default tells what kind of value an option takes.
check_value() {
    case $2 in
        true | false)
            [[ $3 == true || $3 == false ]] || option_error "--$1 must be true or false, not '$3'" ;;
        *[!0-9]* | "") ;;
        *)
            [[ $3 =~ ^[0-9]+$ ]] || option_error "--$1 must be a whole number, not '$3'" ;;
    esac
}

# at_least_one NAME...: these options count what there must be.
at_least_one() {
    local name
    for name in "$@"; do ((${!name} > 0)) || option_error "--${name} must be at least 1, not ${!name}"; done
}

# take_options SCRIPT WORD...: set the variables named by the options; words that SCRIPT has no option for, and --help once
# it was printed, go to `others`.
take_options() {
    local script=$1 name value
    shift
    local -A defaults=()
    while IFS='|' read -r name value _; do
        if [ -n "${name}" ]; then defaults[${name}]=${value}; fi
    done < <(list_options "${script}")
    others=()
    while [ $# -gt 0 ]; do
        name=${1#--} name=${name%%=*} name=${name//-/_}
        case $1 in
            --help | -h) print_help "${script}"; others+=("$1"); shift; continue ;;
            --*) if [[ ! -v defaults[${name}] ]]; then others+=("$1"); shift; continue; fi ;;
            *) others+=("$1"); shift; continue ;;
        esac
        if [[ $1 == *=* ]]; then
            value=${1#*=}; shift
        else
            [ $# -gt 1 ] || option_error "$1 needs a value"
            value=$2; shift 2
        fi
        check_value "${name}" "${defaults[${name}]}" "${value}"
        printf -v "${name}" '%s' "${value}"
    done
}

# parse_options SCRIPT WORD...: take_options where nobody else takes the others; --help exits.
parse_options() {
    local others
    take_options "$@"
    case ${others[0]-} in
        "") [ ${#others[@]} -eq 0 ] || option_error "unexpected argument '' (options look like --name value)" ;;
        --help | -h) exit 0 ;;
        --*) others=("${others[0]%%=*}"); option_error "unknown option --${others[0]#--} (see --help)" ;;
        *) option_error "unexpected argument '${others[0]}' (options look like --name value)" ;;
    esac
}
