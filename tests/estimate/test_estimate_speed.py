"""Predicted times: the fit finds what it is given, and measured ratios on record are met."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vllm_prune.cli.main import main
from vllm_prune.config import PRESETS, PruneConfig
from vllm_prune.estimate import VideoShape, estimate, read_dims
from vllm_prune.estimate.estimate import Request
from vllm_prune.estimate.speed import Sample, Speed, fit_speed, load_speed, save_speed
from vllm_prune.estimate.text_dims import EstimateError

MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks/results/estimate-check.json").read_text())
TRUE = Speed(
    front_fixed=0.01,
    front_per_flop=2e-12,
    decoder_fixed=0.02,
    linear_per_flop=1e-12,
    attention_per_flop=4e-12,
    decode_step=0.05,
)


def sample(speed: Speed, frames: int) -> Sample:
    """What a device of that speed would be measured with."""
    request = Request(video=VideoShape(frames, 224, 224), text_tokens=40)
    cost = estimate(read_dims("embedded"), request, PruneConfig()).before
    seconds = speed.seconds(cost)
    front = speed.front_fixed + speed.front_per_flop * cost.flops.encoder.total
    return Sample(
        frames=frames, height=224, width=224, text_tokens=40, seconds=seconds, decoder_seconds=seconds - front
    )


def test_the_fit_finds_the_speed_that_samples_were_made_with():
    samples = [sample(TRUE, frames) for frames in (8, 16, 32, 64)]
    found = fit_speed(read_dims("embedded"), samples, TRUE.decode_step, None)
    assert asdict(found) == pytest.approx(asdict(TRUE), rel=1e-6)


def test_no_part_takes_negative_time():
    import dataclasses

    # Times that do not grow with the length at all.
    samples = [dataclasses.replace(sample(TRUE, frames), seconds=0.5, decoder_seconds=0.4) for frames in (8, 16, 64)]
    found = fit_speed(read_dims("embedded"), samples, 0.1, None)
    assert min(asdict(found).values()) >= 0
    assert found.decoder_fixed == pytest.approx(0.4)


def test_one_length_says_nothing():
    with pytest.raises(EstimateError, match="three lengths or more"):
        fit_speed(read_dims("embedded"), [sample(TRUE, 8)] * 5, 0.1, None)


def test_ratios_follow_from_seconds():
    request = Request(video=VideoShape(32, 224, 224), text_tokens=40)
    found = estimate(read_dims("embedded"), request, PRESETS["default"])
    assert TRUE.ttft_ratio(found) == TRUE.seconds(found.after) / TRUE.seconds(found.before)
    prefill_only = TRUE.throughput_ratio(found, output_tokens=0, clients=4)
    assert prefill_only == pytest.approx(1 / TRUE.ttft_ratio(found))
    # What every token of an answer costs is not saved.
    assert 1 < TRUE.throughput_ratio(found, output_tokens=100, clients=4) < prefill_only
    unpruned = estimate(read_dims("embedded"), request, PruneConfig())
    assert TRUE.ttft_ratio(unpruned) == TRUE.throughput_ratio(unpruned, 16, 4) == 1


def test_predicted_ratios_agree_with_measured_ones():
    """Predicted by the present code from the calibration on record; measured in the same run, and on servers."""
    from benchmarks.estimate_check import SERVERS, predict

    found = predict(MEASURED, SERVERS)
    rows = [*found["configurations"].values(), *found["servers"]]
    assert len(found["configurations"]) == 6
    assert len(found["servers"]) == 6
    for row in rows:
        for what in ("ttft", "throughput"):
            if f"predicted_{what}_ratio" in row:
                assert row[f"predicted_{what}_ratio"] == pytest.approx(row[f"measured_{what}_ratio"], rel=0.2), row


def test_a_calibration_is_read_back_and_used(capsys, tmp_path):
    path = tmp_path / "speed.json"
    save_speed(path, TRUE, {"model": "embedded"})
    assert load_speed(path) == TRUE
    assert main(["estimate", "embedded", "--speed", str(path), "--prune", "default"]) == 0
    printed = capsys.readouterr().out
    found = estimate(read_dims("embedded"), Request(video=VideoShape(64, 448, 448)), PRESETS["default"])
    assert f"{TRUE.ttft_ratio(found):.0%}" in printed
    assert "predicted requests a second" in printed
    assert main(["estimate", "embedded", "--speed", str(path), "--prune", "default", "--json"]) == 0
    (fields,) = json.loads(capsys.readouterr().out)
    assert fields["predicted_ttft_ratio"] == pytest.approx(TRUE.ttft_ratio(found))


@pytest.mark.parametrize("content", [None, "{", "{}", '{"schema": 2, "speed": {}}', '{"schema": 1, "speed": {"x": 1}}'])
def test_another_file_is_no_calibration(capsys, tmp_path, content):
    path = tmp_path / "speed.json"
    if content is not None:
        path.write_text(content)
    assert main(["estimate", "embedded", "--speed", str(path)]) == 2
    assert f"speed={str(path)!r}" in capsys.readouterr().err


def test_the_requests_that_fit_are_told(capsys):
    assert main(["estimate", "embedded", "--memory", "1", "--prune", "aggressive"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("requests that fit")]
    before, after = map(int, line.split()[-2:])
    assert 0 < 5 * before < after
