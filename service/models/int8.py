"""Weight-only int8: every output row of a matrix is stored as whole numbers and one scale."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE = 256


class Int8Linear(nn.Module):
    """y = (x @ weight^T) * scale + bias: weight int8 [out, in], scale float32 [out]. Activations keep their dtype.

    This is the definition; it widens the whole weight in every product.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        out, device = linear.out_features, linear.weight.device
        self.in_features, self.out_features = linear.in_features, out
        weight = torch.empty(linear.weight.shape, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out, dtype=torch.float32, device=device), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        product = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias

    def quantise(self, start: int, rows: Tensor) -> None:
        """Take float rows [n, in] as the weight's rows from `start` on, symmetric: the largest number of each becomes 127.

        Piece by piece, so that little is ever held in float32.
        """
        for offset in range(0, len(rows), PIECE):
            wide = rows[offset : offset + PIECE].float()
            scale = wide.abs().amax(dim=1) / 127
            at = slice(start + offset, start + offset + len(wide))
            self.weight[at].copy_((wide / scale.clamp(min=1e-30)[:, None]).round_())
            self.scale[at].copy_(scale)


def quantise(network: nn.Module) -> None:
    """Give the linear layers inside `network` their int8 form, in place and without their numbers.

    Routers of a mixture of experts (`gate`) stay as they are: they are small and decide.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "gate":
                setattr(module, name, Int8Linear(child))
