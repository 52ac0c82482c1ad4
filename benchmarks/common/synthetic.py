"""Handwritten-looking digits drawn by the program itself: a stand-in where MNIST cannot be had.

Each digit is a few pen strokes, and each stroke a smooth curve (a Catmull-Rom spline) through a
handful of points. A writer's hand is imitated in four steps: the points are jittered, the sheet
is bent, the whole digit is slanted, turned, stretched and shifted, and the pen has a random
width. A pixel is dark when it is nearer to a stroke than half the width of the pen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

SIDE = 28
CHUNK = 1000  # images drawn together, from one generator of their own
SEGMENTS = 20  # straight pieces that the strokes of one digit are cut into
BOX = 20.0  # pixels, the height or the width of a digit, as in MNIST
POINTS = 16  # control points of a style at most

Point = tuple[float, float]
Stroke = list[Point]

# Styles of each digit: the strokes of a style are parted by slashes, and the points of a stroke
# are in percent of the digit's box, x to the right and y downwards.
STYLES: dict[int, list[str]] = {
    0: [
        "56,2 30,14 20,50 30,86 50,98 70,86 80,50 72,16 52,2",
        "66,10 44,3 24,25 20,62 40,96 66,90 80,55 74,20 56,6",
    ],
    1: [
        "50,0 50,50 50,100",
        "33,20 53,0 / 53,0 52,50 52,100",
        "34,18 52,0 / 52,0 52,100 / 30,100 74,100",
    ],
    2: [
        "22,24 36,5 60,2 76,20 67,46 44,73 20,97 / 20,97 50,95 82,96",
        "22,20 42,2 68,8 72,34 50,68 26,95 16,84 32,76 56,93 86,90",
    ],
    3: [
        "24,12 46,0 71,12 67,35 42,47 / 42,47 70,56 76,80 50,100 20,88",
        "24,3 74,3 / 74,3 45,40 / 45,40 72,52 75,82 48,100 20,90",
    ],
    4: [
        "30,2 22,30 20,55 / 20,55 50,56 84,52 / 70,4 66,50 62,100",
        "64,0 16,64 / 16,64 86,62 / 64,0 62,100",
    ],
    5: [
        "78,3 34,3 / 34,3 27,44 / 27,44 50,36 74,52 74,82 48,100 20,90",
        "80,2 40,6 30,42 60,46 74,68 56,94 18,96",
    ],
    6: [
        "68,0 40,20 24,55 27,86 50,100 74,84 69,60 47,53 26,72",
        "50,0 30,40 26,76 42,100 68,92 70,68 48,60 30,80",
    ],
    7: [
        "20,5 78,5 / 78,5 56,45 42,100",
        "20,6 80,4 / 80,4 58,45 44,100 / 34,52 76,50",
        "20,22 24,6 / 24,6 50,8 80,4 / 80,4 64,45 58,100",
    ],
    8: [
        "70,14 50,2 29,16 37,38 61,55 74,78 50,99 26,80 39,56 63,38 72,18",
        "50,46 30,26 48,2 70,24 50,46 / 50,46 24,74 50,99 76,72 50,46",
    ],
    9: [
        "72,20 50,2 26,20 33,45 56,46 73,22 / 73,16 70,60 62,100",
        "70,14 46,2 26,24 38,48 62,42 74,16 74,60 58,92 28,98",
    ],
}


def synthetic_digits(
    count: int,
    seed: int = 0,
    split: str = "train",
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `count` images (uint8, count x 28 x 28) and their labels (int64).

    Image number i depends on the seed, the split and i alone, never on `count`.
    """
    images = torch.empty(count, SIDE, SIDE, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for start in range(0, count, CHUNK):
        end = min(start + CHUNK, count)
        generator = seeded_generator("drawn digits", seed, split, start // CHUNK)
        # The chunk is drawn whole and then cut: its random numbers must not depend on `count`.
        chunk_images, chunk_labels = _draw_chunk(generator)
        images[start:end] = chunk_images[: end - start]
        labels[start:end] = chunk_labels[: end - start]
        if on_progress is not None:
            on_progress(end)
    return images, labels


def seeded_generator(*key: object) -> torch.Generator:
    """A random generator that depends on the key alone, not on what was drawn before."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def _draw_chunk(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    points, starts, ends, styles_of = _style_tables()
    labels = torch.randint(10, (CHUNK,), generator=generator)
    pick = torch.rand(CHUNK, generator=generator)
    style = styles_of[labels, (pick * styles_of.shape[1]).long()]

    def normal(*shape: int) -> Tensor:
        return torch.randn(CHUNK, *shape, generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(CHUNK, generator=generator)

    hand = points[style] + 0.045 * normal(POINTS, 2)
    hand = hand - 0.5
    # Bending the sheet: each coordinate is displaced by slow waves with random phases.
    for amplitude, frequency in ((0.06, 3.0), (0.03, 6.0)):
        direction, phase = normal(1, 2), normal(1, 2)
        wave = (hand.flip(-1) * frequency + direction * (hand * frequency) * 0.5 + 3 * phase).sin()
        hand = hand + amplitude * normal(1, 2) * wave
    hand = hand @ _slant_turn_stretch(
        slant=0.12 + 0.25 * normal(),
        angle=0.13 * normal(),
        stretch=uniform(0.75, 1.25),
    )
    begin = torch.bmm(starts[style], hand)
    end = torch.bmm(ends[style], hand)
    # MNIST fits each digit into a box of 20 pixels and centres it; so do we, and miss by a little.
    corners = torch.cat([begin, end], 1)
    low, high = corners.amin(1, keepdim=True), corners.amax(1, keepdim=True)
    middle, extent = (low + high) / 2, (high - low).amax(-1, keepdim=True)
    scale = BOX * uniform(0.85, 1.05).view(-1, 1, 1) / extent
    offset = SIDE / 2 + 0.8 * normal(1, 2)
    begin, end = (begin - middle) * scale + offset, (end - middle) * scale + offset

    half_width = uniform(0.65, 1.7)
    ink = half_width[:, None, None] + 0.5 - _distance_to_strokes(begin, end)
    ink = ink.clamp_(0, 1) * uniform(0.85, 1.0)[:, None, None]
    ink += 0.04 * torch.randn(ink.shape, generator=generator) * ink.sqrt()
    return ink.clamp_(0, 1).mul_(255).round_().to(torch.uint8), labels


def _slant_turn_stretch(slant: Tensor, angle: Tensor, stretch: Tensor) -> Tensor:
    """One 2 x 2 matrix per image, to be multiplied from the right onto rows (x, y)."""
    sine, cosine, zero, one = angle.sin(), angle.cos(), torch.zeros_like(slant), slant.new_ones(())
    widen_and_lean = torch.stack([stretch, zero, -slant, one.expand_as(slant)], -1)
    turn = torch.stack([cosine, sine, -sine, cosine], -1)
    return widen_and_lean.view(-1, 2, 2) @ turn.view(-1, 2, 2)


def _distance_to_strokes(begin: Tensor, end: Tensor) -> Tensor:
    """Distance of every pixel's centre to the nearest segment: images x 28 x 28.

    One segment of all the images at a time, so that the temporaries stay in the cache.
    """
    count, segments, _ = begin.shape
    centres = torch.arange(SIDE) + 0.5
    along = end - begin
    squared_length = along.square().sum(-1).clamp_min_(1e-6)
    nearest = torch.full((count, SIDE, SIDE), math.inf)
    for s in range(segments):
        away_x = centres - begin[:, s, 0, None]
        away_y = centres - begin[:, s, 1, None]
        along_x = along[:, s, 0, None]
        along_y = along[:, s, 1, None]
        # How far along the segment the foot of the perpendicular lies: 0 is its begin, 1 its end.
        part_x = away_x * along_x / squared_length[:, s, None]
        part_y = away_y * along_y / squared_length[:, s, None]
        foot = (part_x[:, None, :] + part_y[:, :, None]).clamp_(0, 1)
        gap_x = torch.addcmul(away_x[:, None, :], foot, along_x[:, :, None], value=-1)
        gap_y = torch.addcmul(away_y[:, :, None], foot, along_y[:, :, None], value=-1)
        torch.minimum(nearest, gap_x.square_().addcmul_(gap_y, gap_y), out=nearest)
    return nearest.sqrt_()


@cache
def _style_tables() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The styles as tensors: control points, weights of segment begins and ends, styles by digit.

    A point on a spline is a weighted sum of the control points with fixed weights, so that all
    the curves of a chunk are two batched matrix products.
    """
    points: list[Tensor] = []
    starts: list[Tensor] = []
    ends: list[Tensor] = []
    first: list[int] = []
    for digit in range(10):
        first.append(len(points))
        for style in STYLES[digit]:
            strokes = _strokes(style)
            control = torch.zeros(POINTS, 2)
            start, end = torch.zeros(SEGMENTS, POINTS), torch.zeros(SEGMENTS, POINTS)
            row = column = 0
            for stroke, pieces in zip(strokes, _share_segments(strokes), strict=True):
                weights = _spline_weights(len(stroke), pieces)
                columns = slice(column, column + len(stroke))
                control[columns] = torch.tensor(stroke)
                start[row : row + pieces, columns] = weights[:-1]
                end[row : row + pieces, columns] = weights[1:]
                row, column = row + pieces, column + len(stroke)
            points.append(control)
            starts.append(start)
            ends.append(end)
    most = 6  # divisible by 1, 2 and 3: every style of a digit gets an equal share
    styles_of = torch.tensor(
        [[first[d] + k % len(STYLES[d]) for k in range(most)] for d in range(10)]
    )
    return torch.stack(points), torch.stack(starts), torch.stack(ends), styles_of


def _strokes(style: str) -> list[Stroke]:
    points = [[point.split(",") for point in stroke.split()] for stroke in style.split("/")]
    return [[(int(x) / 100, int(y) / 100) for x, y in stroke] for stroke in points]


def _share_segments(strokes: list[Stroke]) -> list[int]:
    """Cut the strokes into SEGMENTS pieces altogether, longer strokes into more."""
    lengths = [sum(math.dist(a, b) for a, b in pairwise(stroke)) for stroke in strokes]
    shares = [max(1, round(SEGMENTS * length / sum(lengths))) for length in lengths]
    shares[lengths.index(max(lengths))] += SEGMENTS - sum(shares)
    return shares


def _spline_weights(points: int, pieces: int) -> Tensor:
    """Catmull-Rom weights of `pieces` + 1 places along a curve through `points` points."""
    # Two imagined points beyond the ends, each a mirror image, let the curve reach its ends.
    extended = torch.zeros(points + 2, points)
    extended[1:-1] = torch.eye(points)
    extended[0, 0], extended[0, 1] = 2, -1
    extended[-1, -1], extended[-1, -2] = 2, -1
    place = torch.linspace(0, points - 1, pieces + 1)
    knot = place.floor().clamp_max(points - 2).long()
    t = (place - knot)[:, None]
    return 0.5 * (
        (-t + 2 * t**2 - t**3) * extended[knot]
        + (2 - 5 * t**2 + 3 * t**3) * extended[knot + 1]
        + (t + 4 * t**2 - 3 * t**3) * extended[knot + 2]
        + (-(t**2) + t**3) * extended[knot + 3]
    )
