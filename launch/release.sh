#!/usr/bin/env bash
# Builds a release from a clean checkout, checks it, and prints the commands that publish it; publishes nothing itself.
#
#   bash launch/release.sh https://HOST/OWNER/NAME [cpu|cuda]
#
# https://...: the repository's page; the README's links in the package point there, at the tag of this version
# cpu, cuda:   try the wheel with that build of vLLM as well (minutes, gigabytes)
# PYTHON=...   another interpreter than python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly ADDRESS=${1:-} DEVICE=${2:-}
readonly OUT=dist
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

die() { echo "release: $*" >&2; exit 1; }
say() { echo "release: $*"; }

read_version() { sed -n 's/^__version__ = "\(.*\)"$/\1/p' vllm_prune/_version.py; }

check_sources() {
    local version=$1
    [[ $ADDRESS =~ ^https://[^/]+/.+ ]] || die "'$ADDRESS' is not the repository's page; usage: bash launch/release.sh https://HOST/OWNER/NAME [cpu|cuda]"
    [[ -z $(git status --porcelain) ]] || die "the checkout has changes that are not committed"
    grep -Eq "^## ${version//./\\.} \([0-9]{4}-[0-9]{2}-[0-9]{2}\)$" CHANGELOG.md ||
        die "CHANGELOG.md has no line '## $version (YYYY-MM-DD)'; date its section, or raise the version in vllm_prune/_version.py"
    if git rev-parse -q --verify "refs/tags/v$version" >/dev/null; then
        die "the tag v$version is there already; raise the version in vllm_prune/_version.py"
    fi
}

build() {
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    "${PYTHON:-python3}" -m venv "$WORK/venv"
    "$WORK/venv/bin/pip" install -qq build twine
    rm -rf "$OUT"
    # The wheel is made from the archive of the sources, so that both are checked.
    VLLM_PRUNE_REPOSITORY=$ADDRESS VLLM_PRUNE_TAG=v$1 "$WORK/venv/bin/python" -m build --outdir "$OUT" . >"$WORK/log" 2>&1 ||
        { cat "$WORK/log" >&2; die "the build failed"; }
    "$WORK/venv/bin/twine" check --strict "$OUT"/*
}

main() {
    local version
    version=$(read_version)
    check_sources "$version"
    say "building $version"
    build "$version"
    bash launch/check_wheel.sh "$OUT"/*.whl ${DEVICE:+"$DEVICE"}
    say "all checks passed; to publish:"
    echo "  git tag -a v$version -m 'vllm-prune $version' && git push origin v$version"
    echo "  twine upload $OUT/*"
}

main
