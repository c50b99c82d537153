#!/usr/bin/env bash
# Where corpora lie on this machine, for all recipes; their local/data.sh read these.
# shellcheck disable=SC2034

LIBRISPEECH=
COMMONVOICE=
COVOST2=
DYNAMIC_SUPERB=
