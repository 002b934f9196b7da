"""A sampler step of many latents, with guidance and fresh noise in the rows that have them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch

from kernels.sampler_update import Guidance, Noise, reference, sampler_step
from tests.benchmarks.compiled import compiled
from tests.benchmarks.gpu_cases import Case


def cases(device: torch.device, small: bool = False) -> Iterable[Case]:
    for rows, shape in ((2, (2, 3, 3)),) if small else ((4, (16, 128, 128)), (64, (4, 64, 64)), (256, (16, 128, 128))):
        generator = torch.Generator(device).manual_seed(rows)
        x, f, h1, h2, without = torch.randn(5, rows, *shape, generator=generator, device=device)
        coefficients = torch.randn(rows, 7, generator=generator, device=device)
        numbers = torch.arange(rows, device=device)
        noise, guidance = Noise(numbers, numbers, 3), Guidance(without, numbers, numbers + 1.0)
        quiet, plain = coefficients.clone(), (x, f, h1, h2)
        quiet[:, 4] = 0.0
        name = f"{rows} x {' x '.join(map(str, shape))}"
        yield Case(
            f"sampler step, {name}", "float32", partial(sampler_step, *plain, quiet),
            {"torch": partial(_reference, *plain, quiet), **compiled(_reference, *plain, quiet, small=small)},
            bytes=4 * 7 * x.numel(), flops=10 * x.numel(),
        )  # fmt: skip
        yield Case(
            f"sampler step with guidance and noise, {name}", "float32",
            partial(sampler_step, *plain, coefficients, noise=noise, guidance=guidance),
            {"torch": partial(_reference, *plain, coefficients, None, noise, guidance)},
            bytes=4 * 8 * x.numel(), flops=13 * x.numel(),
        )  # fmt: skip


def _reference(*arguments: object) -> tuple[torch.Tensor, ...]:
    return reference.sampler_step(*arguments)[:3]  # type: ignore[arg-type]
