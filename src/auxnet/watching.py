"""Watch PyTorch operator by operator: count multiply-adds, and the bytes that tensors hold."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that does not import PyTorch's compiler, which would take seconds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class MultiplyAddCounter(Watching):  # type: ignore[no-untyped-call]
    """Counts the multiply-adds of convolutions and matrix products, in backwards too, as PyTorch does."""

    multiply_adds = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, operator = kwargs or {}, func.overloadpacket
        if operator not in flop_registry:  # under inference_mode some arrive undecomposed: a linear layer
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if operator in flop_registry:  # it counts two operations for each
            self.multiply_adds += flop_registry[operator](*args, **kwargs, out_val=result) // 2
        return result


class PeakBytes(Watching):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages, from the operator that makes one until it is freed: `now` and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.hold([leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)])
        return results

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Count the storages of these tensors, each once (views and in-place results share one)."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in self._seen:
                self._seen.add(address)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._release, address, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def _release(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size
