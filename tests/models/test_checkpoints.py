"""Checkpoint folders as people have them, and broken ones: loaded, or refused with the reason and before memory is spent."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from service.engine.assembly import build_engine
from service.models import filling
from service.models.decoder import Decoder
from service.models.generation_config import GenerationConfig
from service.models.loading import ModelError, ModelSpec, TextModel, load_model
from service.models.memory import available_memory, container_room
from service.models.model_spec import readable
from service.settings import Settings
from service.workers.hosting import Hosting, TextHost, host
from tests.checkpoints import write_decoder, write_flow_transformer
from tests.families import VARIANTS, write_variant
from tests.few import few

pytest.importorskip("transformers")

CPU = torch.device("cpu")
HOSTING = Hosting("cpu", 1, 1 << 20, 16, 4, False)


def load(folder: Path, options: str = "") -> TextModel:
    model = load_model(ModelSpec.parse(f"chat={folder}{options}"), CPU)
    assert isinstance(model, TextModel)
    return model


def refused(folder: Path, options: str = "") -> str:
    with pytest.raises(ModelError) as caught:
        host(f"chat={folder}{options}", HOSTING)
    assert str(caught.value).startswith("chat: ")
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama with the embedded byte tokeniser."""
    write_variant(tmp_path / "llama", VARIANTS["llama"])
    (tmp_path / "llama/tokenizer.json").write_text((write_decoder(tmp_path / "other") / "tokenizer.json").read_text())
    return tmp_path / "llama"


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_shards_and_a_single_file_give_the_same_network(folder: Path, tmp_path: Path) -> None:
    write_variant(tmp_path / "shards", VARIANTS["llama"], shard="40KB")
    (tmp_path / "shards/tokenizer.json").write_text("{}")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2 and not (tmp_path / "shards/model.safetensors").exists()
    single, sharded = load(folder).network.state_dict(), load(tmp_path / "shards").network.state_dict()
    assert single.keys() == sharded.keys() and all(torch.equal(single[name], sharded[name]) for name in single)


def test_a_checkpoint_in_16_bits_is_computed_in_the_fast_dtype_and_one_in_float32_as_it_is(tmp_path: Path) -> None:
    from service.models.loading import fast_dtype

    for name, dtype in (("wide", torch.float32), ("short", torch.bfloat16)):
        write_variant(tmp_path / name, VARIANTS["llama"], dtype)
        (tmp_path / name / "tokenizer.json").write_text("{}")
    assert load(tmp_path / "wide").network.dtype is torch.float32
    assert load(tmp_path / "short").network.dtype is fast_dtype(CPU)
    assert load(tmp_path / "short", ",dtype=float32").network.dtype is torch.float32
    embedded = load_model(ModelSpec.parse("shakespeare"), CPU)
    assert isinstance(embedded, TextModel) and embedded.network.dtype is torch.float32


def test_a_missing_and_a_left_over_tensor_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    key = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    assert f"tensor {name} is missing" in refused(folder)
    save_file({**tensors, name: key, "model.extra": key.clone()}, folder / "model.safetensors")
    assert "holds tensors that the architecture does not have: model.extra" in refused(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(intermediate_size=84))
    assert "tensor model.layers.0.mlp.down_proj.weight has shape (48, 80), expected (48, 84)" in refused(folder)


def test_a_tensor_of_a_dtype_that_is_not_read_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors")
    assert "tensor model.norm.weight is stored as F8_E4M3; supported: F64, F32" in refused(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors" in refused(folder) and "is the file complete?" in refused(folder)


@pytest.mark.parametrize("options", ["", ",dtype=bfloat16", ",quantization=int8", ",quantization=fp8"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, number: float, options: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = number
    save_file(tensors, folder / "model.safetensors")
    assert "tensor model.layers.1.mlp.down_proj.weight holds numbers that are not finite" in refused(folder, options)


def test_of_every_model_the_log_says_how_it_is_run(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_flow_transformer(tmp_path / "pictures")
    with caplog.at_level("INFO"):
        host(f"chat={folder}", HOSTING)
        host(f"pictures={tmp_path / 'pictures'},dtype=float32", HOSTING)
    said = [record.getMessage() for record in caplog.records if "run by" in record.getMessage()]
    assert said[0].startswith(f"chat: {folder}, ") and "texts up to 256 tokens" in said[0]
    assert said[1].startswith(f"pictures: {tmp_path / 'pictures'}, ") and "float32, run by torch, pictures of 8x8, 4" in said[1]


def test_a_shard_that_is_not_there_or_outside_the_folder_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    assert "names model-00001-of-00002.safetensors, which is not there" in refused(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../other/model.safetensors"}}))
    assert "files outside of its folder" in refused(folder)
    index.write_text("{")
    assert "model.safetensors.index.json: Expecting property name" in refused(folder)
    index.write_text('{"weight_map": 5}')
    assert "weight_map must be an object" in refused(folder)


def test_pickles_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(folder)
    assert "has neither model.safetensors nor" in message and "pytorch_model.bin is not read: pickles can run code" in message


def test_a_folder_without_a_fast_tokeniser_says_how_to_make_one(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert "has no tokenizer.json, only a tokenizer.model; AutoTokenizer" in refused(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: " in refused(folder)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: llama, mistral"),
        ({"model_type": ["llama"]}, "model_type ['llama'] is not supported"),
        ({"stride": 3}, "stride must be an object, not 3"),
        ({"hidden_size": "large"}, "hidden_size must be a positive integer, not 'large'"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, not None"),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads"),
        ({"hidden_act": "xielu"}, "hidden_act must be one of silu"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false, not 'yes'"),
        ({"rope_parameters": {"rope_type": "axial"}}, "rope type 'axial' is not supported; supported: default"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "rope parameter low_freq_factor of type llama3 is missing"),
        ({"rope_parameters": {"mrope_section": [1, 2]}}, "rope parameter mrope_section = [1, 2] of type default"),
        ({"residual_multiplier": 0.22}, "residual_multiplier = 0.22 is not supported. (If it has no effect"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4} is not supported"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list of them, not '</s>'"),
    ],
)
def test_what_a_config_asks_for_and_the_decoder_does_not_compute_is_refused_by_name(
    folder: Path, change: dict[str, Any], words: str
) -> None:
    edit(folder / "config.json", lambda config: config.update(change))
    assert words in refused(folder)


def test_a_config_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json: Expecting" in refused(folder)
    (folder / "config.json").write_text("[]")
    assert "config.json must be a JSON object" in refused(folder)


def test_keys_without_effect_do_not_keep_a_model_from_being_served(folder: Path) -> None:
    extra = {"use_cache": False, "_name_or_path": "x", "pretraining_tp": 2, "use_mrope": False, "rope_scaling": None}
    edit(folder / "config.json", lambda config: config.update(extra))
    load(folder)


def test_a_model_that_does_not_fit_says_how_much_it_needs_and_is_not_read(folder: Path) -> None:
    message = refused(folder, ",kv_memory=90TiB")
    assert "needs 90 TiB of memory" in message and "90 TiB for the KV cache, and cpu has" in message
    # A checkpoint of 8 TB that takes no room on the disk: its numbers are a hole in the file.
    rows = 1 << 41
    edit(folder / "config.json", lambda config: config.update(vocab_size=rows // 48))
    tensors = load_file(folder / "model.safetensors")
    header, at = {}, 0
    for name, tensor in tensors.items():
        shape = [rows // 48, 48] if name in ("lm_head.weight", "model.embed_tokens.weight") else list(tensor.shape)
        size = 2 * torch.Size(shape).numel()
        header[name], at = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}, at + size
    head = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        try:
            file.truncate(8 + len(head) + at)
        except OSError:
            pytest.skip("this file system has no files of 8 TB")
    assert f"for weights and {readable(HOSTING.kv_memory)} for the KV cache" in refused(folder) and " TiB" in refused(folder)


def test_the_length_of_texts_is_the_models_own_unless_the_cache_is_smaller(folder: Path) -> None:
    def longest(options: str) -> int:
        hosted = host(f"chat={folder}{options}", HOSTING)
        assert isinstance(hosted, TextHost)
        return hosted.max_model_len

    # 3 layers, keys and values of 2 heads with 12 numbers in float32: 576 bytes a token.
    assert longest("") == 256 and longest(",max_model_len=100") == 100
    assert longest(f",kv_memory={576 * 16 * 5}") == 80
    message = refused(folder, f",kv_memory={576 * 16 * 5},max_model_len=100")
    assert "kv_memory of 45 KiB holds 80 tokens; 100 need 63 KiB" in message
    assert "kv_memory is 9000 bytes, one block takes 9216" in refused(folder, ",kv_memory=9000")
    assert "max_model_len 257 is more than the 256 positions that the model knows" in refused(folder, ",max_model_len=257")


def test_a_containers_limit_counts_as_memory_and_its_file_pages_do_not(tmp_path: Path) -> None:
    for name, content in (("memory.max", "1000"), ("memory.current", "700"), ("memory.stat", "anon 400\ninactive_file 250\n")):
        (tmp_path / name).write_text(content)
    assert container_room(10_000, tmp_path) == 550
    (tmp_path / "memory.max").write_text("max")
    assert container_room(10_000, tmp_path) == 10_000
    assert 0 < available_memory(CPU) < 1 << 50


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    assert "device 'abacus' cannot be used" in refused(folder, ",device=abacus")


@pytest.mark.parametrize("option", ["quantization=int8", "max_model_len=8", "kv_memory=1MiB"])
def test_options_of_text_models_are_refused_for_pictures(tmp_path: Path, option: str) -> None:
    write_flow_transformer(tmp_path)
    assert f"{option.split('=')[0]} is for text models" in refused(tmp_path, f",{option}")


def test_generation_config_gives_stop_tokens_and_sampling_defaults(folder: Path) -> None:
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [2, 7, 4000], "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}'
    )
    model = load(folder)
    assert model.eos_token_ids == (2, 7), "an id outside the vocabulary is never drawn"
    assert model.sampling_defaults == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    card = build_engine(Settings(models=[f"chat={folder}"], kv_memory=1 << 20)).models["chat"].card
    assert card.sampling_defaults == model.sampling_defaults and card.eos_token_ids == [2, 7]
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", lambda config: config.update(eos_token_id=[2, 5]))
    assert load(folder).eos_token_ids == (2, 5) and load(folder).sampling_defaults == {}


def test_a_model_whose_author_samples_greedily_is_greedy() -> None:
    config = GenerationConfig.from_json({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}, "m")
    assert config.sampling == {"temperature": 0.0, "repetition_penalty": 1.1} and config.eos_token_ids is None


def test_generation_settings_that_make_no_sense_or_have_no_effect_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "generation_config.json").write_text('{"top_p": 1.5}')
    assert "generation_config.json: top_p must be above 0 and at most 1, not 1.5" in refused(folder)
    GenerationConfig.from_json({"no_repeat_ngram_size": 3, "num_beams": 1}, "m")
    assert "m: generation_config.json: these have no effect: no_repeat_ngram_size" in caplog.text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_big_checkpoint_shows_how_far_it_is(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folder)
    assert "loading" not in caplog.text
    monkeypatch.setattr(filling, "BIG", 1)
    with caplog.at_level("INFO"):
        load(folder)
    size = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values()) >> 10
    assert f"loading chat: {size} of {size} KiB" in caplog.text
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    load(folder)
    assert "loading chat: 100%" in terminal.getvalue()


def test_a_head_that_was_trained_apart_is_used_whatever_the_config_ties(tmp_path: Path) -> None:
    """As transformers does, since its version 5."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    for apart in (True, False):
        if not apart:
            model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
        model.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**written, "tie_word_embeddings": True}))
        loaded = load_model(ModelSpec.parse(f"m={tmp_path},dtype=float32"), torch.device("cpu")).network
        assert isinstance(loaded, Decoder) and loaded.config.tie_word_embeddings is not apart
        if apart:
            assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


MEASURE = """
import sys
from pathlib import Path
import torch
from service.models.loading import ModelSpec, load_model

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

torch.set_num_threads(1)
before = status("VmRSS:")
model = load_model(ModelSpec.parse(sys.argv[1]), torch.device("cpu"))
weights = sum(p.nbytes for p in model.network.parameters())
print(weights, status("VmHWM:") - before, "transformers" in sys.modules)
"""


BFLOAT16, INT8 = "dtype=bfloat16", "quantization=int8,dtype=bfloat16"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("options", few([BFLOAT16, INT8], INT8))
def test_loading_never_holds_two_copies_and_imports_no_transformers(tmp_path: Path, options: str) -> None:
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8,
        "num_attention_heads": 8, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    shapes = {
        "self_attn.q_proj": (1024, 1024), "self_attn.k_proj": (1024, 1024), "self_attn.v_proj": (1024, 1024),
        "self_attn.o_proj": (1024, 1024), "mlp.gate_proj": (4096, 1024), "mlp.up_proj": (4096, 1024),
        "mlp.down_proj": (1024, 4096), "input_layernorm": (1024,), "post_attention_layernorm": (1024,),
    }  # fmt: skip
    layers = {f"layers.{i}.{name}": shape for i in range(8) for name, shape in shapes.items()}
    names = {**layers, "embed_tokens": (64, 1024), "norm": (1024,)}
    tensors = {f"model.{name}.weight": torch.zeros(shape, dtype=torch.bfloat16) for name, shape in names.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    total = sum(tensor.nbytes for tensor in tensors.values())
    command = [sys.executable, "-c", MEASURE, f"m={tmp_path},{options}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, peak, transformers = ended.stdout.split()
    assert total > 250e6 and int(weights) < (0.51 if "int8" in options else 1.01) * total
    # Beside the weights: 64 MiB of the file, one tensor, which int8 widens, and what the allocator keeps.
    assert int(peak) < int(weights) + 160e6 < int(weights) + total
    assert transformers == "False"
