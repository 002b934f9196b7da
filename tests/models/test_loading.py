"""What `--model` says, and the dtype that a network gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.models.loading import ImageModel, ModelError, ModelSpec, TextModel, fast_dtype, load_model
from tests.checkpoints import write_decoder, write_flow_transformer

CPU = torch.device("cpu")


def test_options_follow_a_folder_or_an_embedded_name(tmp_path: Path) -> None:
    write_decoder(tmp_path / "m")
    spec = ModelSpec.parse(f"chat={tmp_path / 'm'},max_model_len=64,dtype=bfloat16")
    assert (spec.name, spec.folder, spec.max_model_len, spec.dtype) == ("chat", tmp_path / "m", 64, "bfloat16")
    assert ModelSpec.parse("shapes,dtype=float32").dtype == "float32"
    assert ModelSpec.parse("shapes,dtype=auto").dtype is None
    assert ModelSpec.parse("shapes,kv_memory=1.5GiB").kv_memory == 3 << 29
    assert ModelSpec.parse("shapes,kv_memory=65536,tensor_parallel=1").kv_memory == 65536
    spec = ModelSpec.parse("chat=someone/a-model.v2,revision=v1,quantization=int8,device=cpu")
    assert (spec.hub_id, spec.revision, spec.quantization, spec.device) == ("someone/a-model.v2", "v1", "int8", "cpu")
    spec = ModelSpec.parse("shapes,lora=ink:a/ink.safetensors,lora=few-steps:b,dtype=float32")
    assert spec.lora == (("ink", Path("a/ink.safetensors")), ("few-steps", Path("b")))


@pytest.mark.parametrize(
    "text,message",
    [
        ("nobody", "no embedded model is called 'nobody'; there are: shakespeare, shapes"),
        ("a=/nowhere", "/nowhere is not a folder"),
        ("shapes,dtype=int3", "dtype must be one of auto, float32, bfloat16"),
        ("shapes,max_model_len=0", "max_model_len must be a positive integer"),
        ("=x", "a name is missing"),
        ("m=", "a folder or hub id is missing"),
        ("shapes,dtype=float32,dtype=float32", "dtype is given twice"),
        ("shapes,colour=red", "option 'colour' is not supported; supported: dtype, device, revision"),
        ("shapes,quantization=int4", "quantization must be int8 or fp8, not 'int4'"),
        ("shapes,tensor_parallel=0", "tensor_parallel must be a positive integer, not '0'"),
        ("shapes,kv_memory=lots", "kv_memory must be a number of bytes such as 268435456, 256MiB or 2GiB, not 'lots'"),
        ("shapes,kv_memory=0", "kv_memory must be"),
        ("shapes,lora=ink", "lora must be ADAPTER:FILE"),
        ("shapes,lora=:ink.safetensors", "lora must be ADAPTER:FILE"),
        ("shapes,lora=ink:a,lora=ink:b", "two adapters called ink"),
        ("shapes,revision=main", "revision is for models from the hub"),
        ("a=/nowhere/at/all", "is not a folder with a config.json"),
    ],
)
def test_a_wrong_specification_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec.parse(text)


def test_text_is_exact_and_pictures_are_fast_unless_asked_otherwise(tmp_path: Path) -> None:
    write_decoder(tmp_path / "text")
    write_flow_transformer(tmp_path / "image")

    def dtype(spec: str) -> torch.dtype:
        model = load_model(ModelSpec.parse(spec), CPU)
        assert isinstance(model, TextModel | ImageModel)
        return next(model.network.parameters()).dtype

    assert dtype(f"t={tmp_path / 'text'}") is torch.float32
    assert dtype(f"i={tmp_path / 'image'}") is fast_dtype(CPU)
    assert dtype(f"i={tmp_path / 'image'},dtype=float32") is torch.float32


@torch.no_grad()
def test_fused_projections_compute_the_same(tmp_path: Path) -> None:
    from service.training.block_diffusion_objective import DenseAttention

    write_decoder(tmp_path)
    model = load_model(ModelSpec.parse(f"t={tmp_path}"), CPU)
    assert isinstance(model, TextModel)
    tokens = torch.randint(256, (130,), generator=torch.Generator().manual_seed(0))
    window = model.network.config.sliding_window
    before = model.network.hidden(tokens, torch.arange(130), DenseAttention(1, 130, window))
    model.network.fuse()
    model.network.fuse()
    assert len([name for name, _ in model.network.named_parameters() if "gate_proj" in name or "q_proj" in name]) == 0
    torch.testing.assert_close(model.network.hidden(tokens, torch.arange(130), DenseAttention(1, 130, window)), before)


@pytest.mark.parametrize("name", ["shakespeare", "shapes"])
def test_adapters_are_refused_where_they_have_no_effect(name: str) -> None:
    with pytest.raises(ModelError, match="lora is for pipelines"):
        load_model(ModelSpec.parse(f"{name},lora=ink:ink.safetensors"), CPU)
