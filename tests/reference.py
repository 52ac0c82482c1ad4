"""The slow, obvious reference: one parameter, Python floats, the papers' equations line by line.

Nothing here comes from the package. Where torch leaves a paper, the line says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import sqrt


def sgd(theta: float, gradients: Iterable[float], *, lr: float) -> Iterator[float]:
    """Robbins and Monro (1951), equation 6: x ← x − aₙ yₙ, with a constant a."""
    for g in gradients:
        theta = theta - lr * g
        yield theta


def momentum(
    theta: float, gradients: Iterable[float], *, lr: float, momentum: float, nesterov: bool = False
) -> Iterator[float]:
    """Sutskever et al. (2013), equations 1–4, with ε = lr and μ = momentum.

    Torch's θ is the paper's look-ahead point θ + μv for Nesterov's method (the gradients are given
    here, so where they are taken does not matter), and its velocity is the paper's divided by −lr.
    """
    v = 0.0
    for g in gradients:
        v_before, v = v, momentum * v - lr * g
        # The look-ahead point moves by v + μ (v − v_before).
        theta = theta + v + momentum * (v - v_before) if nesterov else theta + v
        yield theta


def adagrad(theta: float, gradients: Iterable[float], *, lr: float, eps: float) -> Iterator[float]:
    """Duchi et al. (2011), figure 1, diagonal: H = δI + diag(s), s the norm of the gradients."""
    seen: list[float] = []
    for g in gradients:
        seen.append(g)
        s = sqrt(sum(x * x for x in seen))
        theta = theta - lr * g / (eps + s)
        yield theta


def rmsprop(
    theta: float, gradients: Iterable[float], *, lr: float, alpha: float, eps: float
) -> Iterator[float]:
    """Tieleman and Hinton (2012), slide 29; ε, not on the slide, beside the root as in torch."""
    mean_square = 0.0
    for g in gradients:
        mean_square = alpha * mean_square + (1 - alpha) * g * g
        theta = theta - lr * g / (sqrt(mean_square) + eps)
        yield theta


def graves(
    theta: float,
    gradients: Iterable[float],
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
) -> Iterator[float]:
    """Graves (2013), equations 38–42; ε beside the root, and lr outside Δ, as in torch."""
    n = g_avg = delta = 0.0
    for g in gradients:
        n = alpha * n + (1 - alpha) * g * g
        g_avg = alpha * g_avg + (1 - alpha) * g
        delta = momentum * delta + g / (sqrt(n - g_avg * g_avg) + eps)
        theta = theta - lr * delta
        yield theta


def adam(
    theta: float,
    gradients: Iterable[float],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 0.0,
    amsgrad: bool = False,
) -> Iterator[float]:
    """Kingma and Ba (2015), algorithm 1; Loshchilov and Hutter (2019), algorithm 2, for `decay`.

    Torch scales the decay by lr and corrects AMSGrad's bias, which Reddi et al. (2018) do not.
    """
    m = v = v_max = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        v_max = max(v_max, v)
        m_hat = m / (1 - beta1**t)
        v_hat = (v_max if amsgrad else v) / (1 - beta2**t)
        theta = theta - lr * (m_hat / (sqrt(v_hat) + eps) + decay * theta)
        yield theta
