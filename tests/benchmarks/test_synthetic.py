"""The synthetic digits: the same on every call, and digits that can be told apart."""

from __future__ import annotations

import torch

from benchmarks.common.synthetic import CHUNK, SIDE, synthetic_digits


def test_an_image_does_not_depend_on_how_many_are_drawn() -> None:
    few, few_labels = synthetic_digits(30)
    many, many_labels = synthetic_digits(CHUNK + 7)
    assert torch.equal(few, many[:30])
    assert torch.equal(few_labels, many_labels[:30])
    assert many.shape == (CHUNK + 7, SIDE, SIDE)


def test_the_global_generator_does_not_matter_and_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = synthetic_digits(20)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, _ = synthetic_digits(20)
    assert torch.equal(first, second)


def test_seeds_splits_and_chunks_differ() -> None:
    base, _ = synthetic_digits(2 * CHUNK)
    assert not torch.equal(base[:20], synthetic_digits(20, seed=1)[0])
    assert not torch.equal(base[:20], synthetic_digits(20, split="test")[0])
    assert not torch.equal(base[:20], base[CHUNK : CHUNK + 20])


def test_all_ten_digits_are_drawn_and_none_is_empty_or_cut_off() -> None:
    images, labels = synthetic_digits(1000)
    assert labels.bincount(minlength=10).min() > 50
    ink = images.float().mean((1, 2)) / 255
    assert ink.min() > 0.02
    assert ink.max() < 0.45
    border = torch.ones(SIDE, SIDE, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (images[:, border] > 128).any(1).float().mean() < 0.1


def test_the_labels_belong_to_the_images() -> None:
    images, labels = synthetic_digits(2000)
    seen, unseen = images.flatten(1).float().split(1000)
    means = torch.stack([seen[labels[:1000] == digit].mean(0) for digit in range(10)])
    guesses = torch.cdist(unseen, means).argmin(1)
    assert (guesses == labels[1000:]).float().mean() > 0.6
