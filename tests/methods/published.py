"""Methods as their papers define them, with loops over Python floats: slow, and independent of the package.

Tokens are lists [T][n][C]; a token is named by its number in row-major order. What the package adds to a paper (how an
exact count is shared) is in its docstrings, and here in as few words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

Vector = Sequence[float]
Video = Sequence[Sequence[Vector]]


def cosine(a: Vector, b: Vector) -> float:
    """0 for a zero vector."""
    length = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def mean(vectors: Sequence[Vector]) -> list[float]:
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def dpc_knn(points: Sequence[Vector], quota: int, k: int) -> list[int]:
    """The centre of each point. Distances are per channel; of equal points the earlier counts as denser."""
    n, channels = len(points), len(points[0])
    distance = [[math.dist(p, q) / math.sqrt(channels) for q in points] for p in points]
    density = [math.exp(-sum(d * d for d in sorted(row)[:k]) / min(k, n)) for row in distance]
    separation = []
    for i in range(n):
        denser = [j for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        separation.append(min(distance[i][j] for j in denser) if denser else max(map(max, distance)))
    score = [density[i] * separation[i] for i in range(n)]
    centres = sorted(sorted(range(n), key=lambda i: (-score[i], i))[:quota])
    return [i if i in centres else min(centres, key=lambda c: (distance[i][c], c)) for i in range(n)]


def dyseg(video: Video, threshold: float, min_segments: int, most: int) -> list[int]:
    """Dynamic segmentation (FastVID, FlashVID): the segment of each frame."""
    frames = [mean(frame) for frame in video]
    similarity = [cosine(a, b) for a, b in itertools.pairwise(frames)]
    deepest = sorted(range(len(similarity)), key=lambda i: (similarity[i], i))
    cuts = {i for i in deepest if similarity[i] < threshold} | set(deepest[: min_segments - 1])
    cuts &= set(deepest[: most - 1])
    return [sum(cut < t for cut in cuts) for t in range(len(video))]


def diverse(frame: Sequence[Vector], quota: int) -> list[int]:
    """Max-min diversity (FlashVID): from the token most like all others, each farthest from those before."""
    picks: list[int] = []
    for _ in range(quota):
        rest = [i for i in range(len(frame)) if i not in picks]
        if picks:
            picks.append(max(rest, key=lambda i: (min(1 - cosine(frame[i], frame[j]) for j in picks), -i)))
        else:
            picks.append(max(rest, key=lambda i: (sum(cosine(frame[i], other) for other in frame), -i)))
    return picks


def share_trees(trees: Sequence[int], slots: int) -> list[int]:
    """One slot for each frame with trees; the others in proportion to further trees, rounded from frame to frame."""
    more, total, upto, given = slots - sum(t > 0 for t in trees), sum(max(t - 1, 0) for t in trees), 0, 0
    shares = []
    for count in trees:
        upto += max(count - 1, 0)
        now = math.floor(upto * max(more, 0) / max(total, 1) + 0.5)
        shares.append(int(count > 0) + now - given)
        given = now
    return shares


def flashvid(
    video: Video,
    picks: Sequence[int],
    segment: Sequence[int],
    shares: Sequence[int],
    link_threshold: float,
    k: int = 7,
) -> list[int]:
    """The token whose slot each joins. picks: diverse tokens of each frame. shares: other slots of each segment."""
    cells = len(video[0])
    tokens = [token for frame in video for token in frame]
    kept = {t * cells + i for t, frame in enumerate(video) for i in diverse(frame, picks[t])}
    root = list(range(len(tokens)))
    for s, share in enumerate(shares):
        frames = [t for t in range(len(video)) if segment[t] == s]
        rest = {t: [i for i in range(t * cells, (t + 1) * cells) if i not in kept] for t in frames}
        links = []
        for t in frames[1:]:
            for i in rest[t] if rest[t - 1] else []:
                like, parent = max((cosine(tokens[i], tokens[j]), -j) for j in rest[t - 1])
                if like > link_threshold:
                    links.append((-like, i, -parent))
        for _, i, parent in sorted(links)[: sum(map(len, rest.values())) - share]:
            root[i] = parent
        for t in frames:
            for i in rest[t]:
                root[i] = root[root[i]]
        _merge_trees(tokens, root, rest, share, k)
    return root


def _merge_trees(tokens: Sequence[Vector], root: list[int], rest: dict[int, list[int]], share: int, k: int) -> None:
    """Clusters the trees of a segment, frame by frame; where slots are fewer than frames, these in their turn."""
    trees = {t: [i for i in own if root[i] == i] for t, own in rest.items()}
    quota = share_trees([len(trees[t]) for t in rest], share)
    into = {}
    for t, slots in zip(rest, quota, strict=True):
        if trees[t]:
            centre = dpc_knn([tokens[i] for i in trees[t]], slots, k)
            into |= {i: trees[t][c] for i, c in zip(trees[t], centre, strict=True)}
    members = [i for own in rest.values() for i in own]
    for i in members:
        root[i] = into[root[i]]
    if share < sum(map(bool, trees.values())):
        whole = sorted(set(into.values()))
        means = [mean([tokens[i] for i in members if root[i] == r]) for r in whole]
        again = dict(zip(whole, (whole[c] for c in dpc_knn(means, share, k)), strict=True))
        for i in members:
            root[i] = again[root[i]]


def fastvid(video: Video, blocks: Sequence[int], quotas: Sequence[int], k: int) -> list[int]:
    """FastVID: density peaks of the first frame of each block are its anchors; others join the most similar (cosine).

    blocks: the block of each frame, -1 for none. quotas: anchors of each block. Returns the anchor of each token.
    """
    cells = len(video[0])
    tokens = [token for frame in video for token in frame]
    root = [-1] * len(tokens)
    for b, quota in enumerate(quotas):
        frames = [t for t, own in enumerate(blocks) if own == b]
        first = frames[0] * cells
        centre = dpc_knn(tokens[first : first + cells], quota, k)
        anchors = [first + i for i, c in enumerate(centre) if i == c]
        for i in range(first, (frames[-1] + 1) * cells):
            root[i] = i if i in anchors else max(anchors, key=lambda a: (cosine(tokens[i], tokens[a]), -a))
    return root


def evs(video: Video, budget: int) -> list[int]:
    """EVS: the first frame, then the tokens least like (cosine) the one before them; increasing."""
    cells = len(video[0])
    change = [math.inf] * cells
    for before, now in itertools.pairwise(video):
        change += [1 - cosine(a, b) for a, b in zip(before, now, strict=True)]
    return sorted(sorted(range(len(change)), key=lambda i: (-change[i], i))[:budget])


def prunevid_static(video: Video, segment: Sequence[int], tau: float) -> list[list[bool]]:
    """PruneVid: cells of which the mean cosine of all pairs over a segment's frames is above tau."""
    found = []
    for s in range(segment[-1] + 1):
        frames = [frame for frame, own in zip(video, segment, strict=True) if own == s]
        rows = []
        for cell in zip(*frames, strict=True):
            pairs = [cosine(a, b) for a, b in itertools.combinations(cell, 2)]
            rows.append(bool(pairs) and sum(pairs) / len(pairs) > tau)
        found.append(rows)
    return found


def prunevid(
    video: Video, segment: Sequence[int], static: Sequence[Sequence[bool]], quotas: Sequence[int], k: int
) -> list[int]:
    """PruneVid: static cells averaged over a segment, then DPC-KNN within its static tokens, and in frames the others.

    quotas: clusters of each segment's static tokens, then of each frame's dynamic ones. Returns the token that each
    joins; that of a static cell is in its segment's first frame.
    """
    cells = len(video[0])
    root = [-1] * (len(video) * cells)
    for s, still in enumerate(static):
        frames = [t for t, own in enumerate(segment) if own == s]
        places = [c for c in range(cells) if still[c]]
        if places:
            means = [mean([video[t][c] for t in frames]) for c in places]
            for c, centre in zip(places, dpc_knn(means, quotas[s], k), strict=True):
                for t in frames:
                    root[t * cells + c] = frames[0] * cells + places[centre]
    for t, frame in enumerate(video):
        places = [c for c in range(cells) if not static[segment[t]][c]]
        if places:
            centres = dpc_knn([frame[c] for c in places], quotas[len(static) + t], k)
            for c, centre in zip(places, centres, strict=True):
                root[t * cells + c] = t * cells + places[centre]
    return root


def holitom_redundant(video: Video, segment: Sequence[int], tau: float) -> list[list[bool]]:
    """HoliTom: the cells of each segment that are like the frame before in each of its frames but the first."""
    found = []
    for s in range(segment[-1] + 1):
        frames = [frame for frame, own in zip(video, segment, strict=True) if own == s]
        pairs = list(itertools.pairwise(frames))
        found.append([bool(pairs) and all(cosine(a[c], b[c]) > tau for a, b in pairs) for c in range(len(video[0]))])
    return found


def holitom(
    video: Video,
    score: Sequence[float],
    segment: Sequence[int],
    redundant: Sequence[Sequence[bool]],
    quotas: Sequence[int],
    k: int,
) -> list[int]:
    """HoliTom: redundant cells averaged over a segment and clustered; of the others of a frame the best by score.

    quotas: clusters of each segment's redundant cells, then others of each frame. Returns the token each joins, or -1.
    """
    cells = len(video[0])
    root = [-1] * (len(video) * cells)
    for s, repeats in enumerate(redundant):
        frames = [t for t, own in enumerate(segment) if own == s]
        places = [c for c in range(cells) if repeats[c]]
        if places and quotas[s]:
            means = [mean([video[t][c] for t in frames]) for c in places]
            for c, centre in zip(places, dpc_knn(means, quotas[s], k), strict=True):
                for t in frames:
                    root[t * cells + c] = frames[0] * cells + places[centre]
    for t, own in enumerate(segment):
        others = [t * cells + c for c in range(cells) if not redundant[own][c]]
        for i in sorted(others, key=lambda i: (-score[i], i))[: quotas[len(redundant) + t]]:
            root[i] = i
    return root
