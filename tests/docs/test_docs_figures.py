"""The README's tables say what the results of the benchmarks say."""

from __future__ import annotations

import itertools
import json
import re
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text()
QUERY = {
    "stage 1, then the question (`attention`)": "stage1+attention",
    "the question alone": "attention",
    "conditional DPP over the video, the best without the question": "dpp",
    "VidCom2": "vidcom2",
    "HoliTom, told the encoder's attention": "holitom",
    "stage 1 alone": "stage1",
    "vLLM's own EVS": "vLLM-EVS",
    "random": "random",
    "uniform": "uniform",
}
SPEED = {
    "stock vLLM": "stock",
    "vLLM's EVS, 75% pruned": "evs:0.75",
    "stage 1, 25% kept": "stage1@25%",
    "`uniform`, 25% kept": "uniform@25%",
    "`default` (the question), 20% kept": "default",
}


def table(text: str, title: str) -> dict[str, list[str]]:
    """Rows of the first table whose header begins with `title`, by their first cell; without bold print."""
    return {label: cells for label, *cells in rows_of(text, title)}


def rows_of(text: str, title: str) -> list[list[str]]:
    """Cells of every row of that table."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(f"| {title} |"))
    next(lines)
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip().replace("**", "") for cell in line[1:-1].split("|")] for line in rows]


def test_accuracy() -> None:
    shown = table(README, "kept")
    measured = table((RESULTS / "accuracy-embedded-query.md").read_text(), "method")
    assert shown.pop("stock vLLM, unpruned")[0] == measured["`baseline` (all tokens)"][0]
    assert shown.keys() == QUERY.keys()
    for label, (_, *cells) in shown.items():
        assert cells == measured[f"`{QUERY[label]}`"], label


def test_speed() -> None:
    shown = table(README, "server")
    pages = (RESULTS / "throughput-cpu.md").read_text().split("\n## ")
    one, eight = table(pages[1], "server"), table(pages[2], "server")
    assert shown.keys() == SPEED.keys()
    for label, (prompt, blocks, first_token, less, rate, more) in shown.items():
        name = f"`{SPEED[label]}`"
        milliseconds, error = (Decimal(part).quantize(Decimal(1), ROUND_HALF_UP) for part in one[name][1].split(" ± "))
        assert prompt.replace(",", "") == one[name][0].split()[0]
        assert blocks == eight[name][3].split()[0]
        assert first_token == f"{milliseconds:,} ± {error} ms"
        assert (less, more) == (one[name][4], eight[name][5])
        assert rate == f"{float(eight[name][2].split()[0]):.2f}"


def test_accuracy_of_pages() -> None:
    text = (ROOT / "docs" / "image-tokens.md").read_text().partition("## Accuracy")[2]
    results = (RESULTS / "accuracy-embedded-pages.md").read_text()
    shown, measured = table(text, "method"), table(results, "method")
    shown["`baseline` (all tokens)"] = shown.pop("all tokens")
    assert shown == measured
    beside = table(results, "configuration")
    for within in ("`same_within_0`", "`same_within_8`"):
        *_, kept, accuracy, _, changed = beside[within]
        assert (f"{float(kept.rstrip('%')):.0f}%", changed) == ("84%", "0 / 0")
        assert "at 8, 84% of these pages' cells are encoded" in text
        assert f"{accuracy}." in text


def test_images() -> None:
    text = (ROOT / "docs" / "image-tokens.md").read_text()
    shown = table(text, "server")
    measured = table((RESULTS / "images-cpu.md").read_text(), "server")
    shown["stock"] = shown.pop("stock vLLM")
    for label, (prompt, blocks, first_token, less) in shown.items():
        assert [prompt, blocks, less] == [measured[label][i] for i in (0, 1, 3)]
        assert first_token == f"{measured[label][2].split()[0]} s"
    assert shown.keys() == measured.keys()
    _, blocks, _, less = measured["`dpp`, 25%"]
    whole = measured["stock"][1]
    assert f"after {less} of stock's time and holds {blocks} KV blocks of 32 in place of {whole}" in README


def test_time_to_the_first_token_of_long_videos() -> None:
    text = (ROOT / "docs" / "long-videos.md").read_text().partition("## Time to the first token")[2]
    rows = json.loads((RESULTS / "long-videos-cpu.json").read_text())["rows"]
    shown = table(text, "server")
    for label, measured in rows.items():
        cells = shown.pop("stock vLLM" if label == "stock" else label)
        for cell, own, stock in zip(cells, measured, rows["stock"], strict=True):
            ratio = "" if label == "stock" else f" ({own['ttft_s'] / stock['ttft_s']:.2f})"
            assert cell == f"{own['ttft_s']:.2f} s{ratio}"
    assert not shown


def test_time_between_tokens_beside_a_long_video() -> None:
    text = (ROOT / "docs" / "long-videos.md").read_text().partition("## What others wait for")[2]
    engines = json.loads((RESULTS / "long-itl.json").read_text())["engines"]
    shown = {label.split("`")[1] if "`" in label else "stock": cells for label, cells in table(text, "server").items()}
    assert shown.keys() == engines.keys()
    for who, own in engines.items():
        assert shown[who] == [
            f"{own['steps']:.0f}",
            f"{own['prefill_ms'] / 1e3:.2f} s",
            f"{own['itl_p50_ms']:,.0f} ms",
            f"{own['itl_p99_ms']:,.0f} ms",
            f"{own['itl_p99_ms'] / engines['stock']['itl_p99_ms']:.2f}",
        ]


def test_time_of_pages() -> None:
    text = (ROOT / "docs" / "image-tokens.md").read_text()
    lines = (RESULTS / "pixel-pages.md").read_text().partition("## Time")[2]
    rows = table(lines, lines[lines.index("| page") :].partition(" |\n")[0].removeprefix("| "))
    *_, encoder, _, _, first_token = rows["all twenty"]
    assert f"takes {encoder} of stock's time and the first token comes after {first_token} of it" in text
    assert f"at {first_token} of stock's" in README
    each = [float(row[-1]) for label, row in rows.items() if label != "all twenty"]
    assert f"from {min(each):.2f}\n(a dialog) to {max(each):.2f} (a scan" in text
    assert (rows["dialog"][-1], rows["letter, scanned"][-1]) == (f"{min(each):.2f}", f"{max(each):.2f}")


def test_dense_prefix() -> None:
    found = json.loads((RESULTS / "dense-prefix-cpu-eager.json").read_text())["presets"]["default"]
    assert f"after {found['ttft_over_unpruned']:.2f} of the unpruned time, {found['ttft_over_ideal']:.2f} of" in README
    assert f"which are {found['dense_prefix_share']:.0%} of that" in README


OTHER_SPEED = {"throughput-cpu-evs.md", "throughput-cpu-question.md"}
FAMILY_SERVERS = (
    ("stock vLLM, 1 token drafted", "mtp:1"),
    ("stock vLLM", "stock"),
    ("its EVS, 75% dropped", "evs:0.75"),
    ("`uniform`, 25% kept", "uniform@25%"),
    ("`question` by similarity, 25% kept", "question@25%"),
    ("`attention`, 25% kept", "attention@25%"),
    ("`default`, 20% kept", "default"),
)


def test_throughput_of_families() -> None:
    rows = rows_of((ROOT / "docs" / "families.md").read_text(), "family | server")
    measured: list[dict[str, list[str]]] = []
    files = set()
    for family, label, prompt, first_token, rate, *several, blocks in rows:
        if family:
            name = re.search(r"results/(throughput-[\w-]+\.md)", family)[1]
            files.add(name)
            loads = re.split(r"\n## (?=\d+ client)", (RESULTS / name).read_text())[1:]
            measured = [table(load, "server") for load in loads]
        server = f"`{next(name for start, name in FAMILY_SERVERS if label.startswith(start))}`"
        one = measured[0][server]
        assert prompt.replace(",", "") == one[0].split()[0], (family, label)
        assert [first_token, rate, blocks.split()[0]] == [*one[4:6], one[6].split()[0]], (family, label)
        assert several == (measured[1][server][4:6] if len(measured) > 1 else several), (family, label)
        assert any(several) == (len(measured) > 1) or server == "`stock`"
    assert files == {path.name for path in RESULTS.glob("throughput-cpu*.md")} - OTHER_SPEED


def test_time_of_images() -> None:
    shown = table((ROOT / "docs" / "image-tokens.md").read_text().partition("## Time and blocks")[2], "server")
    measured = table((RESULTS / "images-cpu.md").read_text(), "server")
    shown["stock"] = shown.pop("stock vLLM")
    assert shown == {name: [*cells[:2], f"{cells[2].split()[0]} s", cells[3]] for name, cells in measured.items()}


def test_time_of_images_by_family() -> None:
    rows = rows_of((ROOT / "docs" / "families.md").read_text(), "two images")
    files = set()
    measured: dict[str, list[str]] = {}
    for family, label, *cells in rows:
        if family:
            name = re.search(r"results/(images-[\w-]+\.md)", family)[1]
            files.add(name)
            measured = table((RESULTS / name).read_text(), "server")
        prompt, blocks, _, ratio = measured["stock" if label == "stock vLLM" else label]
        assert [cell.replace(",", "") for cell in cells] == [prompt, blocks, ratio], (family, label)
    assert files == {path.name for path in RESULTS.glob("images-cpu-*.md")}


def test_memory_of_long_videos() -> None:
    text = (ROOT / "docs" / "long-videos.md").read_text().partition("## Memory")[2]
    rows = json.loads((RESULTS / "long-memory.json").read_text())["rows"]
    short, long = (row for row in rows if (row["engine"], row["clip"]) == ("default", "moving"))
    for name, cells in zip(("front", "core", "worker"), list(table(text, "process | its own").values()), strict=True):
        found = [
            long[f"{name}_own_mib"],
            *(row[f"{name}_{what}_mib"] for what in ("beyond", "rest") for row in (short, long)),
        ]
        assert cells == [f"{found[0]:,.0f}", *(f"{each:.1f}" for each in found[1:])]
    sizes = {f"{long[f'{name}_mib']:.1f}" for name in ("frames", "pixels")}
    assert f"frames and pixels {sizes.pop()} each" in text
    assert not sizes
    assert f"features {long['features_mib']:.1f}" in text
    assert f"hidden states {long['scratch_mib']:.1f}" in text
    stock = json.loads((RESULTS / "long-memory-stock.json").read_text())["rows"][-1]
    assert (stock["clip"], stock["frames"]) == ("moving", 2048)
    front, core, worker = (f"{stock[f'{name}_beyond_mib']:.1f}" for name in ("front", "core", "worker"))
    said = f"{front} MiB in the API server, {core} in the engine core and {worker} in the worker"
    assert said in " ".join(text.split())
    assert f"{stock['prompt_tokens']:,} tokens of KV blocks where {long['prompt_tokens']} are held here" in text


def test_memory_of_videos_of_squares() -> None:
    text = (ROOT / "docs" / "long-videos.md").read_text().partition("## Memory")[2]
    rows = [row for row in json.loads((RESULTS / "square-memory.json").read_text())["rows"] if row["frames"] == 1024]
    ours, stock = ([row["beyond_mib"] for row in rows if row["plugin"] is plugin] for plugin in (True, False))
    assert len(ours) == len(stock) == 4
    assert f"brings {rows[0]['pixels_mib']:.0f} MiB" in text
    assert f"takes {min(ours):.0f} to {max(ours):.0f} MiB" in text
    for each in stock:
        assert f"{each:,.0f} (" in text


def test_accuracy_of_long_clips() -> None:
    text = (ROOT / "docs" / "long-videos.md").read_text().partition("## What it is worth")[2]
    measured = table((RESULTS / "accuracy-embedded-long.md").read_text(), "method")
    shown = {label.split("`")[1] if "`" in label else label: cells for label, cells in table(text, "shown").items()}
    names = {
        "64 frames, unpruned": "unpruned64",
        "512 frames, conditional DPP over the whole clip": "dpp-clip",
        "512 frames, unpruned: eight times the tokens": "unpruned512",
    }
    assert {names.get(label, label): cells[0] for label, cells in shown.items()} == {
        name.strip("`"): next(cell for cell in cells if cell != "-")
        for name, cells in measured.items()
        if "all tokens" not in name
    }


def test_positions_in_one_dimension() -> None:
    text = (ROOT / "docs" / "families.md").read_text()
    rows = rows_of(text, "stand-in | frames")
    assert len(rows) == 8
    for stand_in, frames, unpruned, *cells in rows:
        model, name = re.match(r"`(\w+)`, .*results/(positions-[\w-]+\.md)", stand_in).groups()
        measured = rows_of((RESULTS / name).read_text(), "model")
        of_shape = {(row[2], row[3]): row[4:7] for row in measured if row[:2] == [model, frames]}
        assert unpruned == of_shape["uniform", "100%"][0]
        assert cells == of_shape["dpp", "25%"] + of_shape["prunevid", "25%"]
