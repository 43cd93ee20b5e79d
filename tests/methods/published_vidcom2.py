"""VidCom2 as its paper (arXiv:2505.14454) defines it, with loops over Python floats; see `published`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from published import Vector, Video, mean


def choose(video: Video, budget: int) -> list[int]:
    """The tokens least like the video's mean and their frame's, more in frames unlike the video; increasing."""
    cells, keep_ratio = len(video[0]), budget / (len(video) * len(video[0]))
    quiet = _quiet_channels([token for frame in video for token in frame])
    units = [[_unit([token[c] for c in quiet]) for token in frame] for frame in video]
    to_video = _likeness(units, [mean([token for frame in units for token in frame])] * len(units))
    to_frame = _likeness(units, [mean(frame) for frame in units])
    unusual = [-math.fsum(frame) / cells for frame in to_video]
    weight = [math.exp((u - max(unusual)) / 0.01) for u in unusual]
    weight = [w / math.fsum(weight) for w in weight]
    wanted, likeness = [], []
    for t in range(len(video)):
        own = [a + b for a, b in zip(to_video[t], to_frame[t], strict=True)]
        ratio = min(1, keep_ratio * (1 + weight[t] - 1 / len(video)))
        asked = min(max(round(ratio * cells), 1), cells)
        wanted += [t * cells + i for i in sorted(range(cells), key=lambda i: own[i])[:asked]]
        likeness += own
    return sorted(sorted(range(len(likeness)), key=lambda i: (i not in wanted, likeness[i]))[:budget])


def _quiet_channels(tokens: Sequence[Vector]) -> list[int]:
    """The half of the channels that varies least."""
    spread = []
    for column in zip(*tokens, strict=True):
        centre = math.fsum(column) / len(column)
        spread.append(math.fsum((x - centre) ** 2 for x in column))
    return sorted(range(len(spread)), key=lambda c: spread[c])[: max(1, len(spread) // 2)]


def _unit(vector: Vector) -> list[float]:
    length = math.hypot(*vector)
    return [x / length for x in vector]


def _likeness(units: Video, centres: Sequence[Vector]) -> list[list[float]]:
    """Sums of Gaussian kernels of five widths between tokens and the centre of each frame."""
    widths = [2.0**power for power in (-3, -2, -1, 0, 1)]
    distance = [[math.dist(u, c) ** 2 for u in frame] for frame, c in zip(units, centres, strict=True)]
    return [[math.fsum(math.exp(-d / (2 * w)) for w in widths) for d in frame] for frame in distance]
