"""A tiny chat model as it would come from the hub: random Qwen3 weights, a byte-level BPE tokeniser, a chat template."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

CORPUS = """The quick brown fox jumps over the lazy dog. What is the weather in Paris today? It is sunny and 21 degrees.
{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}} Größe, naïve, 日本語のテキスト, emoji 🎭🎨."""

HERMES = """{%- if tools %}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
You may call these functions; write each call between <tool_call></tool_call>:
{% for tool in tools %}
{{ tool | tojson }}
{% endfor %}
<|im_end|>
{% elif messages[0].role == 'system' %}
{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}
{{ '<|im_start|>assistant\\n' }}
{%- generation %}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
{{ '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{%- endgeneration %}
{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{ '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking else '') }}
{%- endif %}"""


LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%Y") %}{% endif %}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nEnvironment: ipython\\nYear: " + date_string + "\\n" }}
{{- ns.system + eos_token }}
{%- if tools is not none %}
    {%- for t in tools %}{{ t | tojson(indent=4) }}{{ "\\n\\n" }}{% endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ('ipython', 'tool') and not message.tool_calls %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + eos_token }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception("one call at a time") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}{{ "}" + eos_token }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}{{ message.content | tojson }}{{ eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """{{ bos_token }}
{%- for message in messages %}
    {%- if loop.index0 == 5 %}{% break %}{% endif %}
    {%- if message["role"] == "user" %}
        {%- if tools and loop.first %}{{ "[AVAILABLE_TOOLS] " + (tools | tojson) + "[/AVAILABLE_TOOLS]" }}{% endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {{- call.function | tojson }}{{ ", " if not loop.last else "]" + eos_token }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{ " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}{{ '[TOOL_RESULTS] {"content": ' + message.content | string + "}[/TOOL_RESULTS]" }}
    {%- else %}{{ raise_exception("no role " + message["role"]) }}{% endif %}
{%- endfor %}"""


@functools.cache
def bpe_tokenizer() -> Tokenizer:
    """A byte-level BPE of some 400 tokens, with the special tokens of the Qwen family and its marks of tool calls."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "<|python_tag|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special)
    tokenizer.train_from_iterator([CORPUS] * 3, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    return tokenizer


def write_chat_model(folder: Path, template: str = HERMES, generation: dict[str, object] | None = None, seed: int = 0) -> Path:
    """`generation` is merged into generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe_tokenizer()
    end = tokenizer.token_to_id("<|im_end|>")
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size() + 3, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=1536, tie_word_embeddings=True,
        eos_token_id=end, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    network = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in network.parameters():
            # Large weights: what comes next then depends visibly on what came before.
            parameter.copy_(torch.randn(parameter.shape) * (0.4 if parameter.ndim > 1 else 1.0))
    network.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"eos_token": {"content": "<|im_end|>", "__type": "AddedToken"}, "pad_token": "<|endoftext|>", "bos_token": None}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kind, **words, "chat_template": template}))
    stops = {"eos_token_id": [end, tokenizer.token_to_id("<|endoftext|>")]}
    (folder / "generation_config.json").write_text(json.dumps({**stops, **(generation or {})}))
    return folder
