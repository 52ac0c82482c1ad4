"""GradScaler on a GPU: fused and capturable steps are left their work, others are unscaled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..cases import DEVICE, Case, each_optimizer, leaves
from ..fused.common import tensors, values

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="about a GPU: --device cuda")

ENGINES: dict[str, dict[str, Any]] = {
    "default": {},
    "loop": {"foreach": False},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "capturable and fused": {"capturable": True, "fused": True},
}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@each_optimizer
def test_gradscaler_skips_infinite_steps_and_scales_nothing_else(
    case: Case, engine: dict[str, Any]
) -> None:
    sizes = (5, 70, 4097)
    scaled, plain = case.ours(tensors(*sizes), **engine), case.ours(tensors(*sizes), **engine)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0)
    for step, infinite in enumerate([True, False, False, True, False]):
        scale = scaler.scale(torch.ones((), device=DEVICE))
        for i, (p, q) in enumerate(zip(leaves(scaled), leaves(plain), strict=True)):
            gradient = values(*p.shape, seed=100 * step + i)
            p.grad, q.grad = gradient * scale, gradient
        if infinite:
            last = leaves(scaled)[-1].grad
            assert last is not None
            last[0] = torch.inf
        before, old = [p.detach().clone() for p in leaves(scaled)], scaler.get_scale()
        scaler.step(scaled)
        scaler.update()
        assert scaler.get_scale() == (old / 2 if infinite else old)
        if infinite:
            assert all(map(torch.equal, leaves(scaled), before))
        else:
            plain.step()
        # Scales are powers of two, so nothing is rounded.
        assert all(map(torch.equal, leaves(scaled), leaves(plain)))
        counts = [
            {int(state["step"]) for state in twin.state.values() if "step" in state}
            for twin in (scaled, plain)
        ]
        assert counts[0] == counts[1]
