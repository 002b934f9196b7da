"""What a decoder is made of, as plain numbers and words; which model family it comes from is not among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from service.models.rope import Rope

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class LayerConfig:
    """What may differ from layer to layer. `window`: keys that a query sees, its own among them (None: all);
    `rope`: how positions turn queries and keys (None: not at all); `experts`: a mixture in place of one feed-forward, or
    beside it. `head_dim` and `kv_heads`: None is the decoder's. With `keys_as_values` a value is what its key was before norm
    and rope."""

    window: int | None
    rope: Rope | None
    experts: bool = False
    head_dim: int | None = None
    kv_heads: int | None = None
    keys_as_values: bool = False


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts: `per_token` of `count` feed-forward layers, weighted by the `scores` of their router, which with
    `normalise` are made to sum to 1 over those chosen, and by `scale`.

    With `groups` only the experts of `chosen_groups` of them, those with the best two, can be chosen (DeepSeek-V3, arXiv
    2412.19437); with `biased` the choice, not the weight, is by score plus a bias of each expert. `shared_size`: of a
    feed-forward layer that all tokens go through as well; 0 for none. `beside` a dense feed-forward, whose sum with it is the
    branch, experts and router norm the stream for themselves, and each expert has a scale of its own (Gemma 4).
    """

    count: int
    per_token: int
    intermediate_size: int
    normalise: bool
    scores: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1
    biased: bool = False
    shared_size: int = 0
    beside: bool = False

    def __post_init__(self) -> None:
        size, rest = divmod(self.count, self.groups)
        if rest or (self.groups > 1 and (size < 2 or not self.per_token <= self.chosen_groups * size <= self.count)):
            choice = f"{self.per_token} of {self.count} experts from {self.chosen_groups} of {self.groups} groups"
            raise ValueError(f"it is not possible to choose {choice}")


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and constants of a decoder. The defaults are Qwen3's.

    `layers` has one entry a layer; left out, all are alike, with `sliding_window` and `rope_theta`. `norms` says where a
    branch is normed: before it, after it, or both. `qk_norm`: over each head, over all of them together, or not at all.
    `attention_scale` None is 1/sqrt(head_dim). A softcap c makes c * tanh(x / c) of x. `mask_token_id` and
    `block_lengths` say how a model was trained for diffusion; where there is no mask token, random ones were its noise.
    `attention` is how text sees itself, `causal`, in blocks of the one block length, or all of it; with `shift` a masked
    token is read at the position before it.

    `value_norm`: values are normed, without weights. `layer_scales`: numbers that a layer's output is multiplied by, none, one,
    or two, of text and of a canvas. In a `canvas_window` all of a canvas sees what its first token sees before it. With
    `self_conditioning` a canvas' input is joined with the distributions that were last read there.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    sliding_window: int | None = None
    max_position_embeddings: int = 2048
    mask_token_id: int | None = None
    block_lengths: tuple[int, ...] = ()
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    layers: tuple[LayerConfig, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    norms: Literal["pre", "post", "both"] = "pre"
    qk_norm: Literal["none", "head", "full"] = "head"
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    learned_positions: bool = False
    experts: ExpertsConfig | None = None
    attention: Literal["causal", "block", "full"] = "causal"
    shift: bool = False
    value_norm: bool = False
    layer_scales: Literal[0, 1, 2] = 0
    canvas_window: bool = False
    self_conditioning: bool = False

    def __post_init__(self) -> None:
        counts = {self.num_key_value_heads, *(layer.kv_heads or self.num_key_value_heads for layer in self.layers)}
        if any(self.num_attention_heads % count for count in counts):
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.attention == "block" and len(self.block_lengths) != 1:
            raise ValueError("text that sees itself in blocks needs one block length")
        known = self.mask_token_id is None or 0 <= self.mask_token_id < self.vocab_size
        if not known or (self.attention == "full" and self.mask_token_id is None):
            raise ValueError(f"mask_token_id must be below vocab_size, {self.vocab_size}, not {self.mask_token_id!r}")
        if not self.layers:
            alike = LayerConfig(self.sliding_window, Rope(self.rope_theta))
            object.__setattr__(self, "layers", (alike,) * self.num_hidden_layers)
        if len(self.layers) != self.num_hidden_layers:
            raise ValueError(f"{len(self.layers)} layers are described, and there are {self.num_hidden_layers}")
        if any(layer.experts for layer in self.layers) and self.experts is None:
            raise ValueError("layers of experts need `experts`")

    def widths(self) -> list[tuple[int, int]]:
        """Heads of keys and values, and the numbers of one, by layer."""
        return [(layer.kv_heads or self.num_key_value_heads, layer.head_dim or self.head_dim) for layer in self.layers]

    @property
    def says_next(self) -> bool:
        """Whether the network gives the distribution of the token behind a text."""
        return self.attention == "causal" and not self.self_conditioning

    def to_json(self) -> dict[str, Any]:
        """The `config.json` that transformers' Qwen3ForCausalLM and `families.read_config` read.

        Raises ValueError for a decoder that is not a Qwen3 of equal layers.
        """
        qwen3 = DecoderConfig(
            self.vocab_size, self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.num_attention_heads,
            self.num_key_value_heads, self.head_dim, self.rope_theta, self.norm_eps, self.tie_word_embeddings,
            self.sliding_window, self.max_position_embeddings, self.mask_token_id, self.block_lengths, self.eos_token_id,
            self.bos_token_id,
        )  # fmt: skip
        if self != qwen3:
            raise ValueError("only a Qwen3 with equal layers can be written")
        layer_type = "full_attention" if self.sliding_window is None else "sliding_attention"
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_sliding_window": self.sliding_window is not None,
            "sliding_window": self.sliding_window,
            "max_window_layers": 0 if self.sliding_window is not None else self.num_hidden_layers,
            "layer_types": [layer_type] * self.num_hidden_layers,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "torch_dtype": "float16",
            "stride": {"mask_token_id": self.mask_token_id, "block_lengths": list(self.block_lengths)},
        }
