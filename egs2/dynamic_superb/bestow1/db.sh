#!/usr/bin/env bash
# Where corpora lie on this machine; local/data.sh reads these. "downloads": fetched there.
# shellcheck disable=SC2034

LIBRISPEECH=
COMMONVOICE=
COVOST2=
DYNAMIC_SUPERB=
MUSTC=
