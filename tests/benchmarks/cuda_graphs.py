"""CUDA graphs on a CPU, so that what is done around them needs no GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph(TorchDispatchMode):
    """Records operations, undoes what they did, and replays them on the same tensors.

    What a CUDA graph freezes, this one does: numbers of the host and the memory of tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.replays = 0
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        self._overwritten: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read"
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[i] if i < len(args) else kwargs.get(argument.name)
                self._overwritten += [(t, t.clone()) for t in _tensors(written)]
        results = func(*args, **kwargs)
        self._operations.append((func, args, kwargs, results))
        return results

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # as above
        with torch.no_grad():
            for tensor, before in reversed(self._overwritten):
                tensor.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, results in self._operations:
            again = func(*args, **kwargs)
            for kept, fresh in zip(_tensors(results), _tensors(again), strict=True):
                if kept.data_ptr() != fresh.data_ptr():
                    kept.copy_(fresh)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def install(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Let a CPU be captured; return the graphs, as they are made."""
    graphs: list[Graph] = []

    def new_graph() -> Graph:
        graphs.append(Graph())
        return graphs[-1]

    monkeypatch.setattr("torch.cuda.CUDAGraph", new_graph)
    monkeypatch.setattr("torch.cuda.graph", lambda graph: graph)
    monkeypatch.setattr("torch.cuda.stream", contextlib.nullcontext)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(f"torch.cuda.{name}", Mock())
    asked = "torch_scratch_optim._capture.torchs._get_capturable_supported_devices"
    monkeypatch.setattr(asked, lambda: ["cpu"])
    return graphs
