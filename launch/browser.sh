#!/usr/bin/env bash
# Installs Chromium for the tests that look at pages, where Debian's or Ubuntu's packages can be installed without a
# question. Anywhere else it says why not and succeeds: those tests are then skipped.
set -euo pipefail

skip() {
    echo "browser: no Chromium installed: $*; the tests that need one are skipped"
    exit 0
}

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
command -v apt-get >/dev/null || skip "there is no apt-get"
[[ $(id -u) == 0 ]] || skip "this needs root"
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -qq && timeout 300 apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 ||
    skip "apt-get could not install it"
echo "browser: installed $(chromium --version 2>/dev/null || echo Chromium)"
