"""What is said about a folder that cannot be served."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.models.errors import ModelError
from service.models.pipelines import folder as loader
from service.models.pipelines.pipeline import Pipeline
from tests.pipelines import load

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def broken(tmp_path: Path, pipeline_folder: Callable[[str], Path]) -> Path:
    """A copy of a pipeline, to be broken."""
    return Path(shutil.copytree(pipeline_folder("stable_diffusion_3"), tmp_path / "copy"))


def change(file: Path, **entries: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **entries}))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        load(folder)


def test_families_and_classes_are_known_by_name(broken: Path) -> None:
    index = broken / "model_index.json"
    change(index, transformer=["diffusers", "UNet2DConditionModel"])
    refused(broken, "transformer is of class diffusers.UNet2DConditionModel; supported: diffusers's SD3Transformer2DModel")
    change(index, transformer=["my_code", "SD3Transformer2DModel"])
    refused(broken, "transformer is of class my_code.SD3Transformer2DModel")
    change(index, transformer=[None, None])
    refused(broken, "has no transformer, without which StableDiffusion3Pipeline cannot run")
    change(index, _class_name="WanPipeline")
    refused(broken, "WanPipeline are not supported; supported: StableDiffusion3Pipeline, ")
    index.write_text("[]")
    refused(broken, "must be a JSON object")


def test_code_beside_the_weights_is_not_run(broken: Path, tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    for name in ("modeling.py", "transformer/modeling.py", "text_encoder/modeling.py"):
        (broken / name).write_text(code)
    remote = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config", "AutoTokenizer": ["modeling.Tokenizer", None]}
    change(broken / "text_encoder/config.json", auto_map=remote)
    change(broken / "transformer/config.json", auto_map=remote)
    change(broken / "tokenizer/tokenizer_config.json", auto_map=remote)
    load(broken)
    assert not (tmp_path / "ran").exists()


def test_pickles_are_not_read(broken: Path) -> None:
    weights = broken / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    refused(broken, "neither diffusion_pytorch_model.safetensors nor .*.bin is not read: pickles can run code")


@pytest.mark.parametrize("component", ["transformer/diffusion_pytorch_model", "text_encoder_3/model"])
def test_weights_that_do_not_fit_are_refused_by_name(broken: Path, component: str) -> None:
    weights = broken / f"{component}.safetensors"
    tensors = load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2 and "embed" not in name and "shared" not in name)

    def store(changed: dict[str, torch.Tensor]) -> None:
        save_file({key: value.contiguous() for key, value in changed.items()}, weights, metadata={"format": "pt"})

    store({key: value for key, value in tensors.items() if key != name})
    refused(broken, f"tensor {name} is missing")
    store({**tensors, "of_no_use.weight": torch.zeros(2)})
    refused(broken, "does not have: of_no_use.weight")
    store({**tensors, name: tensors[name][:-1]})
    rows, columns = tensors[name].shape
    refused(broken, rf"tensor {name} has shape \({rows - 1}, {columns}\), expected \({rows}, {columns}\)")
    store({**tensors, name: torch.full_like(tensors[name], float("nan"))})
    refused(broken, f"tensor {name} holds numbers that are not finite")
    store({**tensors, name: tensors[name].to(torch.float8_e4m3fn)})
    refused(broken, f"tensor {name} is stored as F8_E4M3")


def test_truncated_and_missing_files_are_named(broken: Path) -> None:
    weights = broken / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(broken, "diffusion_pytorch_model.safetensors.*is the file complete")
    (broken / "transformer/config.json").unlink()
    refused(broken, "transformer has no config.json")
    (broken / "scheduler/scheduler_config.json").unlink()
    refused(broken, "scheduler_config.json")


def test_a_folder_of_a_variant_alone_is_refused_by_its_name(broken: Path) -> None:
    weights = broken / WEIGHTS
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    refused(broken, "no diffusion_pytorch_model.safetensors; diffusion_pytorch_model.fp16.safetensors is a variant")


def test_a_tokeniser_that_is_not_there_is_named(broken: Path) -> None:
    (broken / "tokenizer_2/tokenizer.json").unlink()
    refused(broken, "tokenizer_2 has no vocabulary; one of tokenizer.json, vocab.json")
    (broken / "tokenizer_2/tokenizer.json").write_text("{")
    refused(broken, "tokenizer_2 cannot be read as CLIPTokenizer")


def test_configs_that_are_not_supported_are_named(broken: Path) -> None:
    change(broken / "transformer/config.json", quantization_config={"quant_method": "bitsandbytes"})
    refused(broken, "quantization_config: quantised pipelines are not supported")


def test_a_scheduler_that_is_not_known_is_named(broken: Path) -> None:
    change(broken / "scheduler/scheduler_config.json", _class_name="VQDiffusionScheduler")
    refused(broken, "VQDiffusionScheduler")


def test_a_pipeline_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    pipeline_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "available_memory", lambda device: 100_000)
    monkeypatch.setattr(loader, "load_network", lambda *_: pytest.fail("weights were read"))
    refused(
        pipeline_folder("stable_diffusion_3"), r"needs 994 KiB of memory for weights \(transformer 4.*dtype=bfloat16 needs half"
    )


def test_libraries_that_are_not_installed_are_asked_for_by_the_extra(
    pipeline_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(pipeline_folder("stable_diffusion_3"), r"pip install 'stride\[images\]'")


def test_a_pipeline_lies_where_and_as_it_was_asked(pipeline_folder: Callable[[str], Path]) -> None:
    network = loader.load_pipeline("tiny", pipeline_folder("flux_dev"), torch.bfloat16, torch.device("cpu"))
    for part in network.components.parts.values():
        if isinstance(part, torch.nn.Module):
            assert {parameter.dtype for parameter in part.parameters()} <= {torch.bfloat16, torch.float32}
            assert not any(parameter.requires_grad for parameter in part.parameters()) and not part.training
    assert network.transformer.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stable_diffusion_3", {"name": "euler", "steps": 28, "guidance": 7.0}),
        ("flux_dev", {"name": "euler", "steps": 28, "guidance": 3.5}),
        ("flux_schnell", {"name": "euler", "steps": 4, "guidance": 1.0}),
        ("flux2_klein", {"name": "euler", "steps": 50, "guidance": 4.0}),
        ("flux2_klein_distilled", {"name": "euler", "steps": 4, "guidance": 1.0}),
        ("qwen_image", {"name": "euler", "steps": 50, "guidance": 4.0}),
        ("z_image", {"name": "euler", "steps": 50, "guidance": 6.0}),
        ("z_image_turbo", {"name": "euler", "steps": 9, "guidance": 1.0}),
    ],
)
def test_requests_that_say_nothing_get_what_the_pipeline_does(
    name: str, expected: dict[str, Any], network_of: Callable[[str], Pipeline]
) -> None:
    assert network_of(name).default_procedure == expected


def test_sizes_are_those_that_the_network_can_place(network_of: Callable[[str], Pipeline]) -> None:
    sizes = network_of("stable_diffusion_3").sizes
    assert sizes.default == (32, 32) and sizes.allows(64, 64) and not sizes.allows(96, 48) and not sizes.allows(100, 16)
    assert network_of("flux_dev").sizes.default == (256, 256)  # 128 latent pixels a side
