"""Compares what the plugin uses of vLLM with other versions of it, by reading their wheels. Imports none of them.

    python tests/compat/compat_check.py                  # every supported version and the newest; what is new
    python tests/compat/compat_check.py --diffs          # with the differences to read
    python tests/compat/compat_check.py --accept         # what is new has been read

A finding is a break, which no review mends, or a change of code that the plugin wraps, overrides or relies on.
`reviewed.json` has the digests of the code that somebody has read.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compat_patches import check_patches
from compat_reached import missing
from compat_tree import Function, Tree
from compat_uses import RELIED_UPON, Hook, calls, hooks, imports
from compat_wheels import newest_unsupported, python_files, releases, supported_releases

from vllm_prune.versions import find_vllm

REVIEWED = Path(__file__).with_name("reviewed.json")


@dataclass(frozen=True)
class Code:
    """Something of vLLM's that the plugin depends on, in one version."""

    digest: str
    text: str


@dataclass(frozen=True)
class Finding:
    """What is different in a version."""

    breaks: bool
    target: str
    message: str
    diff: str = ""

    def __str__(self) -> str:
        return f"{'BREAK' if self.breaks else 'changed'} {self.target}: {self.message}"


def load_reviewed() -> dict[str, list[str]]:
    """Digests that were read, by target."""
    return json.loads(REVIEWED.read_text()) if REVIEWED.exists() else {}


def breaks(tree: Tree) -> Iterator[Finding]:
    """What cannot work with this version."""
    for module, name, where in imports():
        if tree.path(module) is None or (name and not tree.has(module, name)):
            yield Finding(True, f"{module}:{name}", f"is imported in {where} and is not there")
    for checked in check_patches(tree):
        if checked.broken:
            yield Finding(True, checked.patch.target, f"patch {checked.patch.name}: {checked.broken}")
    for hook in hooks():
        reason = _unfit(hook, tree)
        if reason:
            yield Finding(True, hook.target, f"{hook.ours}: {reason}")
    for owner, attribute, where in missing(_base(), tree):
        yield Finding(True, f"{owner}.{attribute}", f"is reached in {where} and is not there")


def _unfit(hook: Hook, tree: Tree) -> str:
    """Why vLLM cannot call a method of ours as it calls its own; "" if it can."""
    original = tree.find(hook.target)
    if original is None:
        return "overrides a method that is not there"
    if not isinstance(original.node, Function):
        return ""
    theirs, ours = original.signature.parameters, hook.signature.parameters
    kinds = {parameter.kind for parameter in ours.values()}
    positional = [name for name, p in theirs.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    own = [name for name, p in ours.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    shared = min(len(positional), len(own))
    if positional[:shared] != own[:shared]:
        return f"takes ({', '.join(own)}), and is given ({', '.join(positional)})"
    if len(positional) > len(own) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        return f"does not take {', '.join(positional[len(own) :])}"
    keywords = [name for name, p in theirs.items() if p.kind is p.KEYWORD_ONLY and name not in ours]
    if keywords and inspect.Parameter.VAR_KEYWORD not in kinds:
        return f"does not take {', '.join(keywords)}"
    return ""


def used_code(tree: Tree) -> dict[str, Code]:
    """All code that the plugin depends on, by target; what is not there is left out."""
    found = {}
    for checked in check_patches(tree):
        for target, symbol in checked.used.items():
            found[target] = Code(symbol.digest, symbol.source)
    for target in (*RELIED_UPON, *(hook.target for hook in hooks())):
        symbol = tree.find(target)
        if symbol is not None:
            found[target] = Code(symbol.digest, symbol.source)
    for name, texts in calls(tree.folder, {hook.name for hook in hooks()}).items():
        text = "\n".join(sorted(texts))
        found[f"calls of {name}"] = Code(hashlib.sha256(text.encode()).hexdigest()[:12], text)
    return found


def changes(base: dict[str, Code], other: dict[str, Code], reviewed: dict[str, list[str]]) -> Iterator[Finding]:
    """What is different in `other`, and nobody has read."""
    for target in sorted(base.keys() | other.keys()):
        old, new = base.get(target), other.get(target)
        before, after = (code.digest if code else "absent" for code in (old, new))
        if before == after or after in reviewed.get(target, ()):
            continue
        what = "is not there" if new is None else "is new" if old is None else "is other code"
        texts = [(code.text if code else "").splitlines() for code in (old, new)]
        diff = "\n".join(difflib.unified_diff(*texts, target, target, lineterm=""))
        yield Finding(False, target, f"{what}, compared with the version that the suite runs on", diff)


def base_version() -> str:
    """The version that the whole suite runs on, or the newest supported one where that was never released."""
    found = find_vllm()
    assert found is not None
    return str(found.version) if found.version in releases("vllm") else supported_releases()[-1]


def check(version: str) -> list[Finding]:
    """Everything that is to be said of a version."""
    return check_tree(Tree(python_files(version)))


def check_tree(tree: Tree) -> list[Finding]:
    """Everything that is to be said of a version in a folder."""
    return [*breaks(tree), *changes(_base_code(), used_code(tree), load_reviewed())]


@functools.cache
def _base() -> Tree:
    return Tree(python_files(base_version()))


@functools.cache
def _base_code() -> dict[str, Code]:
    return used_code(_base())


def accept() -> None:
    """Writes the digests, in every supported version, of all that is not the same in them."""
    codes = [used_code(Tree(python_files(version))) for version in supported_releases()]
    accepted = {}
    for target in sorted(set().union(*codes)):
        digests = [code[target].digest if target in code else "absent" for code in codes]
        if len(set(digests)) > 1:
            accepted[target] = sorted(set(digests))
    REVIEWED.write_text(json.dumps(accepted, indent=1) + "\n")


def main() -> int:
    """Exit status: 1 if a supported version has a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffs", action="store_true", help="show how the code differs")
    parser.add_argument("--accept", action="store_true", help="write reviewed.json; breaks stay breaks")
    arguments = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        sys.exit(
            "compat_check: needs Ray, as the plugin's part for it is read too: bash launch/setup.sh --extras test,ray"
        )
    if arguments.accept:
        accept()
    supported, failed = supported_releases(), False
    for version in [*supported, *filter(None, [newest_unsupported()])]:
        findings = check(version)
        failed = failed or (version in supported and bool(findings))
        print(f"{version}{'' if version in supported else ' (not supported)'}: {len(findings)} finding(s)")
        for finding in findings:
            print(f"  {finding}")
            if arguments.diffs and finding.diff:
                print(finding.diff)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
