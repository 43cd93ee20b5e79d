"""What the plugin uses of vLLM, in the wheels of every supported version and of the newest."""

import warnings

import pytest
from compat_check import check
from compat_wheels import NoIndexError, newest_unsupported, supported_releases

from vllm_prune.supported import MINORS


@pytest.fixture(scope="module", autouse=True)
def index() -> None:
    try:
        supported_releases()
    except NoIndexError as error:
        pytest.skip(f"the package index cannot be reached: {error}")


@pytest.mark.parametrize("minor", MINORS)
def test_a_supported_version_has_what_is_used_and_nothing_unread(minor):
    version = supported_releases()[MINORS.index(minor)]
    said = "; read it with `python tests/compat/compat_check.py --diffs`, then accept it (docs/versions.md)"
    assert [str(finding) for finding in check(version)] == [], f"vLLM {version}{said}"


def test_the_newest_version_is_looked_at():
    newest = newest_unsupported()
    if newest is None:
        return  # it is supported, and checked above
    findings = check(newest)
    listed = "\n".join(map(str, findings))
    warnings.warn(f"vLLM {newest} is not supported yet; {len(findings)} finding(s):\n{listed}", stacklevel=1)
