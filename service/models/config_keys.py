"""The keys of a config.json, each taken by whoever computes it; what nobody took is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HARMLESS = {
    "architectures", "attention_dropout", "attn_pdrop", "auto_map", "bad_words_ids", "begin_suppress_tokens",
    "cache_implementation", "chunk_size_feed_forward", "do_sample", "dtype", "embd_pdrop", "forced_bos_token_id",
    "forced_eos_token_id", "hidden_dropout", "id2label", "initializer_range", "is_llama_config",
    "keys_to_ignore_at_inference", "label2id", "length_penalty", "max_length", "model_type", "n_ctx", "name_or_path",
    "num_beam_groups", "num_beams", "num_nextn_predict_layers", "num_return_sequences", "output_router_logits",
    "pad_token_id", "pretraining_tp",
    "problem_type", "repetition_penalty", "resid_pdrop", "return_dict", "router_aux_loss_coef", "router_jitter_noise",
    "stride", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "task_specific_params", "temperature", "tokenizer_class", "top_k", "top_p", "torch_dtype",
    "transformers.js_config", "transformers_version", "typical_p", "unsloth_fixed", "unsloth_version", "use_cache",
}  # fmt: skip
"""They matter to training, to the tools that wrote the file, or to another task, not to the logits of a text."""


class ConfigKeys:
    """`defaults` are the values of keys that a family's files may leave out; `renamed` is what it calls some keys."""

    def __init__(self, json: Mapping[str, Any], defaults: Mapping[str, Any], renamed: Mapping[str, str]) -> None:
        self._values = {**defaults, **json}
        self._renamed = renamed
        self._taken: set[str] = set()

    def take(self, key: str) -> Any:
        """The value, or None where there is none."""
        key = self._renamed.get(key, key)
        self._taken.add(key)
        return self._values.get(key)

    def skip(self, key: str) -> None:
        """A key, by its own name, that has no effect on this family's networks."""
        self._taken.add(key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.take(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{self._renamed.get(key, key)} must be a positive integer, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.take(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self._renamed.get(key, key)} must be a number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.take(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ValueError(f"{self._renamed.get(key, key)} must be true or false, not {value!r}")
        return value

    def one_of(self, key: str, allowed: Mapping[str, Any], default: str) -> Any:
        value = self.take(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{self._renamed.get(key, key)} must be one of {', '.join(allowed)}, not {value!r}")
        return allowed[value]

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.take(key)
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{key} must be an object, not {value!r}")
        return value or {}

    def listed(self, key: str, length: int) -> list[Any] | None:
        value = self.take(key)
        if value is not None and (not isinstance(value, list) or len(value) != length):
            raise ValueError(f"{key} must be a list of {length}, one a layer, not {value!r:.80}")
        return value

    def finish(self) -> None:
        """Raises ValueError, naming it, for a key that is set and that nobody took."""
        for key, value in self._values.items():
            if key in self._taken or key in HARMLESS or key.startswith("_") or value in (None, False, 0, "", [], {}):
                continue
            raise ValueError(
                f"{key} = {value!r:.80} is not supported. (If it has no effect on the network, remove it from config.json.)"
            )
