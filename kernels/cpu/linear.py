"""Weight matrices packed for the CPU kernels."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.library import library

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
HALF_PANEL = 16


class LinearStruct(ctypes.Structure):
    """`struct Linear` of gemm.h."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


@dataclass(frozen=True)
class PackedLinear:
    """A weight [outputs, inputs] in panels; `scale` and `bias` float32 [outputs] or None."""

    packed: Tensor
    scale: Tensor | None
    bias: Tensor | None
    outputs: int
    inputs: int
    kind: int

    def struct(self) -> LinearStruct:
        """Pointers into this object, which must outlive the struct."""
        return LinearStruct(
            self.packed.data_ptr(), pointer(self.scale), pointer(self.bias), self.outputs, self.inputs, self.kind, 0
        )

    def rows(self, index: Tensor) -> Tensor:
        """Rows int64 [N] of the weight as float32 [N, inputs], as an embedding reads them."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.outputs:
            raise IndexError(f"rows {index.min()} to {index.max()} of {self.outputs}")
        out = torch.empty(len(index), self.inputs)
        index = index.contiguous()
        _library().stride_unpack_rows(
            ctypes.byref(self.struct()), ctypes.c_void_p(index.data_ptr()), ctypes.c_int64(len(index)),
            ctypes.c_void_p(out.data_ptr()),
        )  # fmt: skip
        return out


def pack(weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, gated: bool = False) -> PackedLinear:
    """Pack a weight [N, K] of float32, bfloat16, or int8 with a `scale` an output.

    `gated`: the weight is a gate over an up projection, [2 I, K]; their outputs are then interleaved by sixteens.
    Raises ValueError for another dtype, or an odd K where pairs are multiplied.
    """
    if weight.dtype not in KINDS or weight.device.type != "cpu":
        raise ValueError(f"a weight must be float32, bfloat16 or int8 on the CPU, not {weight.dtype} on {weight.device}")
    if weight.dtype != torch.float32 and weight.shape[1] % 2:
        raise ValueError(f"a weight of {weight.dtype} needs an even number of inputs, not {weight.shape[1]}")
    order = torch.arange(weight.shape[0])
    if gated:
        half = weight.shape[0] // 2
        filled = -(-half // HALF_PANEL) * HALF_PANEL
        gate = torch.where(torch.arange(filled) < half, torch.arange(filled), -1)
        both = torch.stack((gate, torch.where(gate < 0, -1, gate + half)))
        order = both.unflatten(1, (-1, HALF_PANEL)).transpose(0, 1).flatten()
    weight = weight.contiguous()
    kind = KINDS[weight.dtype]
    lib = _library()
    packed = torch.empty(lib.stride_packed_bytes(len(order), weight.shape[1], kind), dtype=torch.uint8)
    lib.stride_pack(
        ctypes.c_void_p(weight.data_ptr()), ctypes.c_void_p(order.data_ptr()), ctypes.c_int64(len(order)),
        ctypes.c_int64(weight.shape[1]), ctypes.c_int(kind), ctypes.c_void_p(packed.data_ptr()),
        ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    return PackedLinear(packed, _ordered(scale, order), _ordered(bias, order), len(order), weight.shape[1], kind)


def pointer(tensor: Tensor | None, dtype: torch.dtype | None = None) -> int | None:
    """Address of the first element of a contiguous tensor, of this dtype if one is given; None stays None."""
    assert tensor is None or (tensor.is_contiguous() and dtype in (None, tensor.dtype))
    return None if tensor is None else tensor.data_ptr()


def _ordered(values: Tensor | None, order: Tensor) -> Tensor | None:
    if values is None:
        return None
    return torch.where(order < 0, 0.0, values.detach().float()[order.clamp_min(0)]).contiguous()


def _library() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None, "callers ask library() first"
    return loaded
