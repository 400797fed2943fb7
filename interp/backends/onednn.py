"""oneDNN linear layers for AMD processors, where the MKL that PyTorch uses for float32 runs at less than half speed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_LARGEST_COPY = 8 << 30
"""Models whose linear weights take more bytes than this are left alone: packed weights are a second copy."""


class FastLinears:
    """Packed copies of a model's linear layers, put in their place for the length of a forward pass.

    Results differ from PyTorch's own by float32 rounding. Nothing is done, and nothing copied, on other processors,
    accelerators and dtypes.
    """

    def __init__(self, model: nn.Module) -> None:
        linears = [module for module in model.modules() if type(module) is nn.Linear]
        size = sum(linear.weight.numel() * 4 for linear in linears)
        wanted = _is_amd() and torch.backends.mkldnn.is_available() and size <= _LARGEST_COPY
        self._linears = [linear for linear in linears if wanted and _is_plain(linear.weight)]
        self._packed: dict[int, tuple[int, Callable[[Tensor], Tensor]]] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the context, the model's linear layers run on oneDNN."""
        replaced: list[nn.Linear] = []
        try:
            for linear in self._linears:
                # A forward set by someone else (an adapter, an offloading hook) is not ours to replace.
                if "forward" not in linear.__dict__:
                    linear.__dict__["forward"] = self._forward(linear)
                    replaced.append(linear)
            yield
        finally:
            for linear in replaced:
                del linear.__dict__["forward"]

    def _forward(self, linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        weight = linear.weight
        current = 0 if weight.is_inference() else weight._version  # moves when weights are changed in place
        version, forward = self._packed.get(id(linear), (-1, None))
        if forward is None or version != current:
            forward = _pack(linear)
            self._packed[id(linear)] = (current, forward)
        return forward


def _pack(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    operators: Any = torch.ops.mkldnn
    weight = operators._reorder_linear_weight(linear.weight.detach(), None)
    bias = None if linear.bias is None else linear.bias.detach()
    return lambda rows: operators._linear_pointwise(rows, weight, bias, "none", [], "")


def _is_plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _is_amd() -> bool:
    description = Path("/proc/cpuinfo")
    return description.exists() and "AuthenticAMD" in description.read_text()
