"""Weight-only quantisation to 8 bits: every output row of a matrix is stored as int8 or fp8 and one scale."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.weight_only import fits, weight_only
from service.models.model_spec import Quantization

PIECE = 256


class WeightOnlyLinear(nn.Module):
    """y = (x @ weight^T) * scale + bias: weight of 8 bits [out, in], scale float32 [out]. Activations keep their dtype.

    Few rows go through a kernel where there is one; elsewhere every product widens the whole weight.
    """

    weight_dtype: ClassVar[torch.dtype]
    largest: ClassVar[float]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        out, device = linear.out_features, linear.weight.device
        self.in_features, self.out_features = linear.in_features, out
        weight = torch.empty(linear.weight.shape, dtype=self.weight_dtype, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out, dtype=torch.float32, device=device), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if fits(x, self.weight):
            return weight_only(x, self.weight, self.scale, self.bias)
        product = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias

    def quantise(self, start: int, rows: Tensor) -> None:
        """Take float rows [n, in] as the weight's rows from `start` on, symmetric: the largest number of each becomes the
        largest that there is. Piece by piece, so that little is ever held in float32."""
        for offset in range(0, len(rows), PIECE):
            wide = rows[offset : offset + PIECE].float()
            scale = wide.abs().amax(dim=1) / self.largest
            at = slice(start + offset, start + offset + len(wide))
            self.weight[at].copy_(self._rounded(wide / scale.clamp(min=1e-30)[:, None]))
            self.scale[at].copy_(scale)

    def _rounded(self, numbers: Tensor) -> Tensor:
        """float32 numbers that the copy which follows converts without another rounding than the nearest."""
        return numbers


class Int8Linear(WeightOnlyLinear):
    """Whole numbers from -127 to 127."""

    weight_dtype = torch.int8
    largest = 127.0

    def _rounded(self, numbers: Tensor) -> Tensor:
        return numbers.round_()


class Fp8Linear(WeightOnlyLinear):
    """e4m3 (arXiv 2209.05433): 3 bits of mantissa, up to 448, so that small weights of a row keep their relative precision."""

    weight_dtype = torch.float8_e4m3fn
    largest = 448.0

    def _rounded(self, numbers: Tensor) -> Tensor:
        return numbers.clamp_(-self.largest, self.largest)


def quantise(network: nn.Module, quantization: Quantization) -> None:
    """Give the linear layers inside `network` their form of 8 bits, in place and without their numbers.

    Routers of a mixture of experts (`gate`) stay as they are: they are small and decide.
    """
    kind = Int8Linear if quantization == "int8" else Fp8Linear
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "gate":
                setattr(module, name, kind(child))
