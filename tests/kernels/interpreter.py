"""Triton's interpreter, made to spend its time on kernels: import this before any kernel runs in it."""

from __future__ import annotations

from kernels.dispatch import TRITON_IS_THERE

if TRITON_IS_THERE:
    import triton.language.core as core
    from triton.runtime import interpreter

    def _call(self: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
        if core.is_builtin(core.full) and self.fn.__globals__.get("core") is core:
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    # It replaces triton.language by its own at every launch, and looks through all of it again whenever one function of a
    # kernel calls another, which finds nothing left to replace and takes most of the time.
    interpreter.InterpretedFunction.__call__ = _call
