"""Commit, digest and versions."""

import functools
import subprocess

from vllm_prune.bench.throughput.provenance import checked_out_commit, describe, source_digest

COMMIT, OTHER = "a" * 40, "b" * 40


def git_folder(root, **files):
    for name, content in files.items():
        path = root / ".git" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_commit_of_a_branch(tmp_path):
    git_folder(tmp_path, HEAD="ref: refs/heads/main\n", **{"refs/heads/main": f"{COMMIT}\n"})
    assert checked_out_commit(tmp_path) == COMMIT


def test_commit_of_a_packed_branch(tmp_path):
    packed = f"# pack-refs\n{OTHER} refs/heads/x\n{COMMIT} refs/heads/main\n^{OTHER}\n"
    git_folder(tmp_path, HEAD="ref: refs/heads/main\n", **{"packed-refs": packed})
    assert checked_out_commit(tmp_path) == COMMIT


def test_detached_commit(tmp_path):
    assert checked_out_commit(git_folder(tmp_path, HEAD=f"{COMMIT}\n")) == COMMIT


def test_commit_of_a_linked_worktree(tmp_path):
    """Made by git itself; its HEAD lies beside those of other worktrees, its branch in the repository."""
    repository, linked = tmp_path / "repository", tmp_path / "linked"
    own = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    run(["git", "init", repository])
    run(["git", "-C", repository, *own, "commit", "--allow-empty", "-m", "first"])
    run(["git", "-C", repository, "worktree", "add", "-b", "other", linked])
    expected = run(["git", "-C", linked, "rev-parse", "HEAD"]).stdout.strip()
    assert checked_out_commit(linked) == expected
    run(["git", "-C", linked, "checkout", "--detach"])
    assert checked_out_commit(linked) == expected


def test_no_repository_no_commit(tmp_path):
    assert checked_out_commit(tmp_path) is None
    assert checked_out_commit(git_folder(tmp_path, HEAD="ref: refs/heads/unborn\n")) is None


def test_digest_follows_code_and_nothing_else(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = source_digest(tmp_path)
    (tmp_path / "data.json").write_text("2")
    assert source_digest(tmp_path) == first
    (tmp_path / "a.py").write_text("3")
    assert source_digest(tmp_path) != first


def test_describe_names_the_machine():
    found = describe()
    assert found["machine"]["cpu_cores"] >= 1
    assert found["machine"]["memory_gib"] > 0
    assert {"python", "vllm-prune", "torch"} <= set(found["versions"])
    assert len(found["source_sha256"]) == 64
