"""`vllm-prune serve MODEL`: prints the plain `vllm serve` line that does the same, less secrets, and becomes it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

from vllm_prune.cli.port import check_port
from vllm_prune.cli.secrets import masked
from vllm_prune.cli.serve_check import check_line
from vllm_prune.cli.serve_defaults import added_options, is_given
from vllm_prune.cli.serve_ray import check_ray
from vllm_prune.cli.trace_place import warn_of_unwritable
from vllm_prune.config import PRESETS, OverridePolicy, PruneConfig, check_override_policy
from vllm_prune.embedded import LISTED, NAMES, resolve
from vllm_prune.gpus import list_gpus
from vllm_prune.media.policy import ALL, DEFAULT, OPTIONAL, VARIABLE, parse_containers
from vllm_prune.override import KEPT, POSITIONS, ServerSettings
from vllm_prune.page.enable import allowed_plugins, trace_folder
from vllm_prune.serving.wire.features import DEFAULT_LAYERS, parse_layers
from vllm_prune.trace_limits import TraceLimits
from vllm_prune.versions import UnsupportedVllmError, require_supported_vllm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options; every other option is one of `vllm serve`."""
    parser.add_argument("model", help=f"folder or hub name of a model, or a small one that comes along: {LISTED}")
    parser.add_argument(
        "--prune",
        default="default",
        metavar="PRESET|JSON",
        help=f"what to prune (default: %(default)s): {', '.join(PRESETS)}, or an object such as "
        '\'{"stage1": {"cluster_ratio": 0.25}}\'',
    )
    parser.add_argument(
        "--prune-override",
        default="tighten",
        choices=get_args(OverridePolicy),
        help='what a request may change by its field "prune" (default: %(default)s)',
    )
    parser.add_argument("--prune-trace", metavar="DIR", help="write what was decided about every video to .npz files")
    parser.add_argument(
        "--prune-trace-files",
        type=int,
        default=TraceLimits.files,
        metavar="N",
        help="traces kept, the latest (default: %(default)s)",
    )
    parser.add_argument(
        "--prune-trace-bytes",
        type=int,
        default=TraceLimits.bytes,
        metavar="N",
        help="bytes that they may take together (default: %(default)s)",
    )
    parser.add_argument(
        "--prune-selector",
        action="append",
        metavar="FILE",
        help='learned selector that scores tokens where "relevance" is "learned" (see `vllm-prune train-selector`); '
        'give one for each place that asks; the embedded models have one each for method "question"',
    )
    parser.add_argument(
        "--prune-dense-tokens",
        type=int,
        metavar="N",
        help='most tokens to hold at once before questions choose, with method "attention": a video with more is '
        "refused, requests beyond it wait; they take memory (default: twice --max-num-batched-tokens)",
    )
    parser.add_argument(
        "--prune-features",
        metavar="LAYER,...",
        help="with --runner pooling: the layers whose hidden states /pooling hands out; 0 is what enters the first, -1 "
        "what leaves the last (default: 0,-1)",
    )
    parser.add_argument(
        "--prune-positions",
        choices=POSITIONS,
        default=KEPT,
        help="of tokens that stay, in a decoder with plain RoPE (LLaVA, InternVL): those of the unpruned prompt, or "
        "one after the other where no question chooses, as papers on such methods have it (default: %(default)s)",
    )
    parser.add_argument(
        "--prune-log",
        action="store_true",
        help="describe in the log, for every request with videos, what was found, pruned and reused, and the times",
    )
    parser.add_argument(
        "--prune-page",
        action="store_true",
        help="serve a page at /prune that asks about a video with and without pruning (best with --prune-override any)",
    )
    parser.add_argument(
        "--prune-containers",
        default="",
        metavar="NAME,...",
        help=f"video formats to take besides the usual ones ({', '.join(DEFAULT)}): {', '.join(OPTIONAL)}, or {ALL}; "
        "docs/security.md says what that opens",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all of it as vLLM would, print the `vllm serve` line and stop"
    )


def run(args: argparse.Namespace) -> int:
    """Replaces this process by vLLM's server; returns only for --dry-run and for mistakes."""
    environment = {"VLLM_PLUGINS": allowed_plugins(os.environ)} if args.prune_page else {}
    if args.prune_containers:
        environment[VARIABLE] = args.prune_containers
    trace = args.prune_trace or (str(trace_folder(os.environ)) if args.prune_page else None)
    try:
        require_supported_vllm()
        parse_containers(args.prune_containers)
        limits = TraceLimits(files=args.prune_trace_files, bytes=args.prune_trace_bytes)
        options: dict[str, Any] = {
            "trace": trace,
            "log": args.prune_log,
            "trace_limits": limits,
            "selector": args.prune_selector,
            "dense_tokens": args.prune_dense_tokens,
            "feature_layers": parse_layers(args.prune_features),
            "positions": args.prune_positions,
        }
        command = serve_command(args.model, args.prune, args.prune_override, args.passed_on, **options)
        check_port(args.passed_on)
        if trace:
            warn_of_unwritable(Path(trace))
        if args.dry_run:
            check_line(command, environment)
    except (UnsupportedVllmError, ValueError) as error:
        print(f"vllm-prune serve: {error}", file=sys.stderr)
        return 2
    settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    print(" ".join([*settings, shlex.join(masked(command))]), flush=True)
    if not args.dry_run:
        os.environ.update(environment)
        os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.cli.main", *command[1:]])
    return 0


def serve_command(
    model: str,
    prune: str,
    override: str,
    passed_on: list[str],
    *,
    trace: str | None = None,
    log: bool = False,
    trace_limits: TraceLimits | None = None,
    selector: list[str] | None = None,
    dense_tokens: int | None = None,
    feature_layers: tuple[int, ...] = DEFAULT_LAYERS,
    positions: str = KEPT,
) -> list[str]:
    """The equivalent `vllm serve` command line.

    Raises:
        ValueError: The configuration is wrong, or the model has no pruning variant.
    """
    from vllm_prune.engine import hf_overrides

    given, rest = _take_hf_overrides(passed_on)
    if model in NAMES:
        if not is_given("--served-model-name", rest):  # else clients would have to write that path
            rest = ["--served-model-name", model, *rest]
        model = resolve(model)
    check_ray(rest)
    own = hf_overrides(
        model, prune, override, trace, log, trace_limits, selector, dense_tokens, feature_layers, positions
    )
    overrides = {**given, **own}
    settings = ServerSettings(config=PruneConfig.parse(prune), override=check_override_policy(override))
    for option in added_options(settings.may_query, rest, list_gpus()):
        print(f"vllm-prune serve: added {option.name} {option.value}: {option.reason}", file=sys.stderr)
        rest = [option.name, option.value, *rest]
    # Without prompt token details, a response cannot tell how many tokens its videos kept.
    return ["vllm", "serve", model, "--hf-overrides", json.dumps(overrides), "--enable-prompt-tokens-details", *rest]


def _take_hf_overrides(passed_on: list[str]) -> tuple[dict[str, object], list[str]]:
    """Splits the user's own `--hf-overrides` from the other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--hf-overrides", "--hf_overrides", default="{}")
    known, rest = parser.parse_known_args(passed_on)
    for option in rest:
        if option.replace("_", "-").startswith("--hf-overrides."):  # vLLM would put it in the place of all of ours
            raise ValueError(f"{masked([option])[0]}: give it as one JSON object, --hf-overrides '{{...}}'")
    shown = masked([known.hf_overrides])[0]
    try:
        overrides = json.loads(known.hf_overrides)
    except ValueError as error:
        raise ValueError(f"--hf-overrides {shown!r}: not valid JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise ValueError(f"--hf-overrides {shown!r}: must be a JSON object, as the variant is added to it")
    return overrides, rest
