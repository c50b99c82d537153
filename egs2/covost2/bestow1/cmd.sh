#!/usr/bin/env bash
# How jobs are started. Empty: on this machine, without any tool. In an ESPnet clone
# (ESPNET_ROOT, see path.sh) its launchers run.pl, slurm.pl, queue.pl, pbs.pl take the same place.
# shellcheck disable=SC2034

train_cmd=""   # statistics, and training on CPUs
cuda_cmd=""    # training, decoding and streaming on GPUs: --gpu and their number are added
decode_cmd=""  # decoding and streaming on CPUs

case ${cmd_backend:-local} in
    local) ;;
    run) train_cmd=run.pl cuda_cmd=run.pl decode_cmd=run.pl ;;
    slurm)
        train_cmd="slurm.pl --config conf/slurm.conf"
        cuda_cmd="slurm.pl --config conf/slurm.conf"
        decode_cmd="slurm.pl --config conf/slurm.conf" ;;
    *)
        echo "error: cmd_backend=${cmd_backend} is not known; known: local run slurm" >&2
        exit 1 ;;
esac
