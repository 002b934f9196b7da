"""The peers without HTTP: transformers' two ways to generate, and llama.cpp's batched decoding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.contestant import Prompt, Stream, Unavailable


def _transformers(folder: Path, threads: int, dtype: torch.dtype, device: str = "cpu") -> Any:
    from transformers import AutoModelForCausalLM, logging

    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval().to(device)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


class TransformersGenerate:
    """`generate` on one padded batch; the prompts of a turn are of one length, so that nothing is lost to padding."""

    def __init__(self, folder: Path, threads: int, sequences: int, length: int) -> None:
        self._model = _transformers(folder, threads, torch.bfloat16)

    def generate(self, prompts: Sequence[Prompt], count: int) -> list[Stream]:
        tokens = torch.tensor([prompt.tokens for prompt in prompts])
        times: list[float] = []

        def clock(ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        began = time.perf_counter()
        out = self._model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False, stopping_criteria=[clock]
        )
        rows = out[:, tokens.shape[1] :].tolist()
        return [Stream(times[0] - began, times[-1] - began, len(row), tuple(row)) for row in rows]


class TransformersContinuous:
    """Continuous batching, its manager started before the clock; pages and their number are chosen to fit the load, as the
    default reserves most of the machine's memory."""

    def __init__(self, folder: Path, threads: int, sequences: int, length: int, device: str = "cpu") -> None:
        self._model = _transformers(folder, threads, torch.bfloat16, device)
        self._pages = sequences * (length // 64 + 2)

    def generate(self, prompts: Sequence[Prompt], count: int) -> list[Stream]:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        ids = [list(prompt.tokens) for prompt in prompts]
        settings = ContinuousBatchingConfig(
            page_size=64, num_blocks=self._pages, max_batch_tokens=sum(map(len, ids)), allow_block_sharing=False
        )
        greedy = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
        with (
            torch.inference_mode(),
            self._model.continuous_batching_context_manager(greedy, True, 30, settings) as manager,
        ):
            began = time.perf_counter()
            names = manager.add_requests(ids, max_new_tokens=count, record_timestamps=True)
            done = {}
            while len(done) < len(ids):
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise Unavailable(f"its loop ended: {manager.background_thread_status.fatal_error}")
                if result is not None and result.is_finished():
                    if result.error is not None:
                        raise Unavailable(result.error)
                    done[result.request_id] = result
        return [self._stream(done[name], began) for name in names]

    @staticmethod
    def _stream(result: Any, began: float) -> Stream:
        times, tokens = result.timestamps, tuple(result.generated_tokens)
        return Stream(times[0] - began, times[-1] - began, len(tokens), tokens)


class StaticLoop:
    """One batch with transformers' static cache: the forward of a decode step compiled, with CUDA graphs on a GPU. All prompts
    have one length, and a shape of batch compiles once, when it is first asked."""

    def __init__(
        self, folder: Path, threads: int, sequences: int, length: int, device: str = "cpu", compiled: bool = True
    ) -> None:
        from transformers import StaticCache

        self._model, self._device = _transformers(folder, threads, torch.bfloat16, device), device
        self._cache = StaticCache(self._model.config, max_cache_len=length)
        self._step = torch.compile(self._model.forward, mode="reduce-overhead") if compiled else self._model.forward

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], count: int) -> list[Stream]:
        began = time.perf_counter()
        self._cache.reset()
        tokens = torch.tensor([prompt.tokens for prompt in prompts], device=self._device)
        logits = self._model(tokens, past_key_values=self._cache, logits_to_keep=1).logits
        position, last = torch.full((1,), tokens.shape[1], device=self._device), logits[:, -1:].argmax(-1)
        rows = [last]
        self._wait()
        first = time.perf_counter() - began
        for _ in range(count - 1):
            out = self._step(last, past_key_values=self._cache, position_ids=position[None])
            last = out.logits[:, -1:].argmax(-1).clone()
            rows.append(last)
            position += 1
        chosen = torch.cat(rows, 1).tolist()
        return [Stream(first, time.perf_counter() - began, count, tuple(row)) for row in chosen]

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()


@dataclass(frozen=True)
class LlamaBatched:
    """llama.cpp's own library, one `llama_decode` for all sequences: the most that any server of it could give."""

    precision: str

    def __call__(self, folder: Path, threads: int, sequences: int, length: int) -> LlamaEngine:
        return LlamaEngine(folder / f"model-{self.precision}.gguf", threads, sequences, length)


class LlamaEngine:
    def __init__(self, path: Path, threads: int, sequences: int, length: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        said: list[str] = []
        self._listener = llama_cpp.llama_log_callback(lambda _, text, __: said.append(text.decode(errors="replace")))
        llama_cpp.llama_log_set(self._listener, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise Unavailable(f"llama.cpp cannot read {path.name}: {''.join(said[-2:])}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_seq_max = sequences
        settings.n_ctx = sequences * (-(-length // 256) * 256)
        settings.n_batch = sequences * length
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = False
        settings.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if self._context is None:
            raise Unavailable(f"llama.cpp gives no context: {''.join(said[-2:])}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(sequences * length, 0, 1)

    def generate(self, prompts: Sequence[Prompt], count: int) -> list[Stream]:
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        began = time.perf_counter()
        tokens: list[list[int]] = [[] for _ in prompts]
        feed = [list(prompt.tokens) for prompt in prompts]
        starts = [0] * len(prompts)
        times: list[float] = []
        for _ in range(count):
            chosen = self._decode(feed, starts)
            times.append(time.perf_counter() - began)
            for i, token in enumerate(chosen):
                tokens[i].append(token)
                starts[i] += len(feed[i])
                feed[i] = [token]
        return [Stream(times[0], times[-1], count, tuple(row)) for row in tokens]

    def _decode(self, feed: list[list[int]], starts: list[int]) -> list[int]:
        """The likeliest token after each sequence's new tokens."""
        batch, at, last = self._batch, 0, []
        for sequence, (row, start) in enumerate(zip(feed, starts, strict=True)):
            for offset, token in enumerate(row):
                batch.token[at], batch.pos[at] = token, start + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = offset == len(row) - 1
                at += 1
            last.append(at - 1)
        batch.n_tokens = at
        status = self._library.llama_decode(self._context, batch)
        if status != 0:
            raise Unavailable(f"llama_decode gave {status}")
        return [self._likeliest(row) for row in last]

    def _likeliest(self, row: int) -> int:
        logits = self._library.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax())
