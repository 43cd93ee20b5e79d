"""Predicted times beside measured ones, on this machine.

    python -m benchmarks.estimate_check [--dims cpu] [--frames 64] [--size 196] [--repeats 3] -o OUTDIR
    python -m benchmarks.estimate_check --recompute OUTDIR/estimate-check.json -o OUTDIR

One engine with random weights. Unpruned requests of four lengths calibrate the device; every preset is predicted from
these alone, and measured. The same calibration predicts what `vllm-prune bench throughput` measured on servers of a
model of the same sizes (`--servers`). `--recompute` predicts anew from a calibration and measurements on record.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ending import exit_from
from vllm_prune.bench.throughput.provenance import describe, describe_lines
from vllm_prune.config import PruneConfig
from vllm_prune.estimate import VideoShape, estimate, read_dims
from vllm_prune.estimate.calibrate import Meter, calibrate
from vllm_prune.estimate.dims import ModelDims, parse_dims
from vllm_prune.estimate.estimate import Request
from vllm_prune.estimate.speed import Sample, Speed, fit_speed
from vllm_prune.estimate.video import read_limits

SERVERS = Path(__file__).with_name("results") / "throughput-cpu.json"
CONFIGS: dict[str, Any] = {
    "stage1_only": "stage1_only",
    "stage2_only": "stage2_only",
    "conservative": "conservative",
    "default": "default",
    "aggressive": "aggressive",
    "uniform, 25%": {"preset": "baseline", "method": "uniform", "keep_ratio": 0.25},
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Calibration and measured times of all configurations, JSON-ready."""
    from vllm_prune.bench.throughput.models import resolve_model

    with tempfile.TemporaryDirectory() as work:
        path = str(resolve_model("random", args.dims, Path(work)).path)
        config = json.loads((Path(path) / "config.json").read_text())
        dims, limits = read_dims(path), read_limits(path)
        video = VideoShape(args.frames, args.size, args.size)
        t, h, w = video.grid(dims.vision, limits)
        meter = Meter(path, t * h * w)
        speed, samples = calibrate(meter, dims, limits, video, args.repeats)
        return {
            "dims": args.dims,
            "model_config": config,
            "calibration": [dataclasses.asdict(sample) for sample in samples],
            "speed": dataclasses.asdict(speed),
            "prunes": CONFIGS,
            "measured_ttft_s": _measure(meter, video, args.repeats),
        }


def _measure(meter: Meter, video: VideoShape, repeats: int) -> dict[str, float]:
    """Median seconds to the first token, in rounds over all configurations, after one that is not counted."""
    prunes = {"baseline": "baseline", **CONFIGS}
    rounds = [
        {name: meter.first_token(video, prune).seconds for name, prune in prunes.items()} for _ in range(repeats + 1)
    ]
    return {name: statistics.median(row[name] for row in rounds[1:]) for name in prunes}


def predict(measured: dict[str, Any], servers: Path | None) -> dict[str, Any]:
    """Predicted beside measured ratios."""
    dims = parse_dims(measured["model_config"])
    samples = [Sample(**fields) for fields in measured["calibration"]]
    speed = fit_speed(dims, samples, measured["speed"]["decode_step"], None)
    longest = samples[-1]
    video = VideoShape(longest.frames, longest.height, longest.width)
    request = Request(video=video, text_tokens=longest.text_tokens)
    times, rows = measured["measured_ttft_s"], {}
    for name, prune in measured["prunes"].items():
        found = estimate(dims, request, PruneConfig.parse(prune))
        rows[name] = {
            "flops_ratio": found.prefill_ratio,
            "predicted_ttft_ratio": speed.ttft_ratio(found),
            "measured_ttft_ratio": times[name] / times["baseline"],
        }
    on_servers = [] if servers is None else predict_servers(dims, speed, json.loads(servers.read_text()))
    return {"configurations": rows, "servers": on_servers}


def predict_servers(dims: ModelDims, speed: Speed, measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for a result of `bench throughput`: vllm-prune's servers against stock vLLM."""
    work = measured["workload"]
    found = {(entry["configuration"], entry["clients"]): entry["metrics"] for entry in measured["summary"]}
    video = VideoShape(work["frames"], work["height"], work["width"])
    t, h, w = video.grid(dims.vision)
    rows = []
    for (name, clients), metrics in found.items():
        prune = _prune_of(next(server["given"] for server in measured["servers"] if server["name"] == name))
        stock = found["stock", clients]
        if prune is None:
            continue
        text = round(stock["prompt_tokens"]["mean"]) - t * h * w
        own = estimate(dims, Request(video=video, text_tokens=text), PruneConfig.parse(prune))
        row: dict[str, Any] = {"configuration": name, "clients": clients}
        if clients == 1:  # with more of them, a request waits for others
            row["predicted_ttft_ratio"] = speed.ttft_ratio(own)
            row["measured_ttft_ratio"] = metrics["ttft_mean_ms"]["mean"] / stock["ttft_mean_ms"]["mean"]
        row["predicted_throughput_ratio"] = speed.throughput_ratio(own, work["output_len"], clients)
        row["measured_throughput_ratio"] = metrics["requests_per_s"]["mean"] / stock["requests_per_s"]["mean"]
        rows.append(row)
    return rows


def _prune_of(given: str) -> str | None:
    """The configuration in a `--configs` value; None for vLLM's own servers."""
    value = given.partition("=")[2] or given
    return None if value == "stock" or value.startswith("evs:") else value


def markdown(results: dict[str, Any], place: dict[str, Any]) -> str:
    """The tables."""
    rows = [
        [name, "", f"{row['flops_ratio']:.2f}", *_compare(row, "ttft"), "", "", ""]
        for name, row in results["configurations"].items()
    ]
    rows += [
        [
            f"{row['configuration']}, servers",
            str(row["clients"]),
            "",
            *_compare(row, "ttft"),
            *_compare(row, "throughput"),
        ]
        for row in results["servers"]
    ]
    head = ["configuration", "clients", "FLOPs", "TTFT, predicted", "measured", "off by"]
    head += ["req/s, predicted", "measured", "off by"]
    lines = [
        "# Predicted and measured",
        "",
        "Ratios to the unpruned model, predicted from unpruned requests of four lengths, by "
        "`benchmarks/estimate_check.py`. "
        "Servers: what `benchmarks/results/throughput-cpu.json` has, measured over HTTP in another run.",
        "",
        "| " + " | ".join(head) + " |",
        "| :-- |" + " --: |" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"- Command: `{results['command']}`",
        *(f"- {line}" for line in describe_lines(place)),
    ]
    return "\n".join(lines) + "\n"


def _compare(row: dict[str, Any], what: str) -> list[str]:
    if f"predicted_{what}_ratio" not in row:
        return ["", "", ""]
    predicted, measured = row[f"predicted_{what}_ratio"], row[f"measured_{what}_ratio"]
    return [f"{predicted:.2f}", f"{measured:.2f}", f"{predicted / measured - 1:+.0%}"]


def main(argv: list[str] | None = None) -> int:
    """Writes OUTDIR/estimate-check.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", default="cpu", help="dimensions of the random model (see bench/throughput)")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--size", type=int, default=196, help="pixels along a side of a frame, a multiple of 28")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--servers", type=Path, default=SERVERS, help="of a model of the same dimensions")
    parser.add_argument("--recompute", type=Path, metavar="JSON", help="predict anew; measure nothing")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.recompute:
        known = json.loads(args.recompute.read_text())
    else:
        place = describe()
        command = " ".join(["python -m benchmarks.estimate_check", *(argv or sys.argv[1:])])
        known = {"command": command, **place, **measure(args)}
    servers = args.servers if args.servers.is_file() and known["dims"] == "cpu" else None
    results = {**known, **predict(known, servers)}
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / "estimate-check"
    text = markdown(results, results)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    exit_from("benchmarks.estimate_check", main)
