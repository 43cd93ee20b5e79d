#!/usr/bin/env bash
# Installs a wheel into an environment of its own, looks whether its command works, takes it out again, and looks whether
# anything is left.
#
#   bash launch/check_wheel.sh WHEEL [cpu|cuda]
#
# cpu, cuda: with that build of vLLM too, as pip leaves it, and `vllm-prune doctor` at the end. Without it, takes seconds.
set -euo pipefail

readonly WHEEL=${1:?usage: bash launch/check_wheel.sh WHEEL [cpu|cuda]}
readonly DEVICE=${2:-}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
readonly BIN=$WORK/venv/bin

die() { echo "check_wheel: $*" >&2; exit 1; }

# Every file of the environment but what Python and pip write beside their own.
files() { (cd "$WORK/venv" && find . -type f -not -path '*/__pycache__/*' | sort); }

# As a user would: torch's companions that do not match are what `doctor` is for.
mend() {
    local name
    for name in torchaudio torchcodec; do
        if "$BIN/pip" show --quiet "$name" 2>/dev/null && ! "$BIN/python" -c "import $name" 2>/dev/null; then
            "$BIN/pip" uninstall --quiet --yes "$name"
        fi
    done
}

check_command() {
    "$BIN/vllm-prune" --version
    "$BIN/vllm-prune" --help >/dev/null
    "$BIN/vllm-prune" estimate embedded >/dev/null
    "$BIN/python" -c 'import sys; sys.exit("vllm_prune.patches.startup" not in sys.modules)' ||
        die "vllm_prune.pth did not run at interpreter start"
}

main() {
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    unset PYTHONPATH
    python3 -m venv "$WORK/venv"
    # What it depends on comes first, so that all that is new afterwards is the wheel's own.
    "$BIN/pip" install -qq "$WHEEL${DEVICE:+[$DEVICE]}"
    "$BIN/pip" uninstall -qq --yes vllm-prune
    files >"$WORK/before"
    "$BIN/pip" install -qq --no-deps "$WHEEL"
    if [[ -n $DEVICE ]]; then mend; files >"$WORK/before"; fi
    check_command
    if [[ -n $DEVICE ]]; then "$BIN/vllm-prune" doctor || die "doctor found something to mend"; fi
    "$BIN/pip" uninstall -qq --yes vllm-prune
    files | grep -v -x -F -f "$WORK/before" >"$WORK/left" || true
    [[ ! -s $WORK/left ]] || die "left behind by pip uninstall: $(tr '\n' ' ' <"$WORK/left")"
    echo "check_wheel: $(basename "$WHEEL") installs, works and leaves nothing behind"
}

main
