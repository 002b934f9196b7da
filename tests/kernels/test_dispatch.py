"""Which version of a kernel runs, and that tests on a CPU run Triton's in the interpreter."""

from __future__ import annotations

import os

import pytest
import torch

from kernels import dispatch
from kernels.dispatch import prefer_triton, triton_for

triton = pytest.importorskip("triton")


def test_tensors_on_a_cpu_take_torch_unless_asked_otherwise() -> None:
    x = torch.zeros(1)
    assert not triton_for(x)
    with prefer_triton():
        assert triton_for(x)
        with prefer_triton():
            assert triton_for(x)
        assert triton_for(x)
    assert not triton_for(x)


def test_an_error_inside_ends_the_preference() -> None:
    with pytest.raises(KeyError), prefer_triton():
        raise KeyError
    assert not triton_for(torch.zeros(1))


def test_without_triton_nothing_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "TRITON_IS_THERE", False)
    with prefer_triton():
        assert not triton_for(torch.zeros(1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here")
def test_triton_was_first_imported_with_the_interpreter_chosen() -> None:
    """Its own functions, too, such as tl.sum: whoever imported triton earlier would have left them to the compiler."""
    from triton.runtime.interpreter import InterpretedFunction

    assert os.environ["TRITON_INTERPRET"] == "1"
    assert isinstance(triton.language.sum, InterpretedFunction)
