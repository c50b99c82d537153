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

# parse_options SCRIPT "$@": set the variables named by the options; --help prints and exits.
parse_options() {
    local script=$1 name value
    shift
    local -A defaults=()
    while IFS='|' read -r name value _; do
        if [ -n "${name}" ]; then defaults[${name}]=${value}; fi
    done < <(list_options "${script}")
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) print_help "${script}"; exit 0 ;;
            --*=*) name=${1%%=*} value=${1#*=}; shift ;;
            --*) name=$1
                [ $# -gt 1 ] || option_error "$1 needs a value"
                value=$2; shift 2 ;;
            *) option_error "unexpected argument '$1' (options look like --name value)" ;;
        esac
        name=${name#--} name=${name//-/_}
        [[ -v defaults[${name}] ]] || option_error "unknown option --${name} (see --help)"
        check_value "${name}" "${defaults[${name}]}" "${value}"
        printf -v "${name}" '%s' "${value}"
    done
}
