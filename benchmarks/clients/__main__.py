"""Runs lmms-eval, GuideLLM and AIPerf against the embedded model, and checks that its videos were pruned.

    python -m benchmarks.clients [CLIENT ...] [--environments DIR] [--prune default] -o benchmarks/results

Each client gets an environment of its own in DIR (made at the first run). The status is 1 if a client fails, loses a
request, or the server counts another number of requests or of kept tokens than the configuration says.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.clients.aiperf import AIPERF
from benchmarks.clients.client import Client, Found, Run, sample_questions
from benchmarks.clients.environment import find_python, installed_version
from benchmarks.clients.guidellm import GUIDELLM
from benchmarks.clients.lmms_eval import LMMS_EVAL
from benchmarks.clients.report import save
from benchmarks.clients.server import Counts, read_counts, running_server
from benchmarks.ending import exit_from
from vllm_prune.bench.throughput.processes import process_group
from vllm_prune.bench.throughput.provenance import describe
from vllm_prune.budget import plan_counts
from vllm_prune.config import PruneConfig

CLIENTS = {client.name: client for client in (LMMS_EVAL, GUIDELLM, AIPERF)}
_TIMEOUT_SECONDS = 900
_TOKENS_A_FRAME = 8  # of the sample clips: 4 x 4 cells for every two frames


def expected_counts(prune: str) -> Counts:
    """What the server has to count when every sample question is asked once."""
    config = PruneConfig.parse(prune)
    before = [_TOKENS_A_FRAME * asked.clip.frames for asked in sample_questions()]
    return Counts(len(before), sum(before), sum(plan_counts(config, tokens).kept for tokens in before))


def check(found: Found, counted: Counts, expected: Counts) -> None:
    """Raises ValueError unless every question was answered once, about a pruned video."""
    if found.answered != expected.requests:
        raise ValueError(f"{found.answered} requests answered; {expected.requests} were asked")
    if counted != expected:
        raise ValueError(f"the server counted {counted}; with every video pruned it is {expected}")


def run_client(client: Client, url: str, environments: Path, folder: Path, expected: Counts) -> dict[str, Any]:
    """Runs one client; its row of the table.

    Raises:
        ValueError, OSError, KeyError, subprocess.SubprocessError: The client failed, or nothing was pruned.
    """
    run = Run(folder=folder, url=url, python=find_python(environments / client.name, client.name))
    folder.mkdir()
    command, before = client.command(run), read_counts(url)
    without_path = ["env", "--unset=PYTHONPATH", f"--chdir={folder}", *command]  # the client's packages are its own
    with process_group(without_path, client.environment, folder / "log") as process:
        status = process.wait(_TIMEOUT_SECONDS)
    if status:
        raise subprocess.CalledProcessError(status, command)
    found, counted = client.read(run), read_counts(url).since(before)
    check(found, counted, expected)
    return {
        "client": client.name,
        "version": installed_version(run.python, client.name),
        "requests": found.answered,
        "video tokens": counted.before,
        "kept": counted.kept,
        **found.figures,
    }


def main() -> int:
    """Runs the clients that are named; 1 if one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)}; default: all")
    parser.add_argument("--environments", type=Path, default=Path("build/clients"), metavar="DIR")
    parser.add_argument("--prune", default="default", metavar="PRESET|JSON")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    unknown = sorted(set(args.clients) - set(CLIENTS))
    if unknown:
        parser.error(f"client {unknown[0]!r}: must be one of {', '.join(CLIENTS)}")
    place, expected, rows, failed = describe(), expected_counts(args.prune), [], False
    command = shlex.join(["python", "-m", "benchmarks.clients", *sys.argv[1:]])
    work = Path(tempfile.mkdtemp(prefix="vllm-prune-clients-"))
    media = sample_questions()[0].clip.path.parent
    with running_server(args.prune, media, work / "server.log") as url:
        for client in (CLIENTS[name] for name in args.clients or CLIENTS):
            try:
                rows.append(run_client(client, url, args.environments.absolute(), work / client.name, expected))
                print(f"{client.name}: {rows[-1]}", flush=True)
            except (ValueError, OSError, KeyError, subprocess.SubprocessError) as error:
                failed = True
                print(f"{client.name}: failed: {error!r}; see {work / client.name}", file=sys.stderr)
            # What is measured stays, whatever becomes of the clients after it.
            if rows:
                save(args.output, {"command": command, "prune": args.prune, "rows": rows, "provenance": place})
    return int(failed)


if __name__ == "__main__":
    exit_from("benchmarks.clients", main)
