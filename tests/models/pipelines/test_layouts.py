"""Text encoders as they were published, by versions of transformers that named tensors otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.models.pipelines.components import load_network
from service.models.pipelines.index import Part

Tensors = dict[str, Tensor]


def renamed(*prefixes: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        changed = {}
        for name, tensor in tensors.items():
            before, after = next((pair for pair in prefixes if name.startswith(pair[0])), ("", ""))
            changed[after + name[len(before) :]] = tensor
        return changed

    return change


LAYOUTS: dict[str, tuple[str, str, str, Callable[[Tensors], Tensors]]] = {
    "T5, its words under the encoder's name": (
        "flux_dev", "text_encoder_2", "T5EncoderModel", renamed(("shared.", "encoder.embed_tokens.")),
    ),
    "T5, its words under both names": (
        "flux_dev", "text_encoder_2", "T5EncoderModel",
        lambda tensors: {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"]},
    ),
    "CLIP under text_model, with its positions": (
        "flux_dev", "text_encoder", "CLIPTextModel",
        lambda tensors: {**renamed(("", "text_model."))(tensors), "text_model.embeddings.position_ids": torch.arange(77)[None]},
    ),
    "Qwen 2.5 VL under language_model": (
        "qwen_image", "text_encoder", "Qwen2_5_VLForConditionalGeneration",
        renamed(("model.", "model.language_model."), ("visual.", "model.visual.")),
    ),
    "Qwen 3 with its head": (
        "z_image", "text_encoder", "Qwen3Model",
        lambda tensors: {**renamed(("", "model."))(tensors), "lm_head.weight": tensors["embed_tokens.weight"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_of_text_encoders_are_read(layout: str, pipeline_folder: Callable[[str], Path], tmp_path: Path) -> None:
    name, component, class_name, change = LAYOUTS[layout]
    original = pipeline_folder(name) / component
    copy = Path(shutil.copytree(original, tmp_path / component))
    tensors = load_file(original / "model.safetensors")
    changed = {key: tensor.clone() for key, tensor in change(tensors).items()}
    assert changed.keys() != tensors.keys()
    save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})

    def read(folder: Path) -> Tensors:
        part = Part("transformers", (class_name,))
        return load_network(folder, part, class_name, torch.float32, torch.device("cpu")).state_dict()

    ours, expected = read(copy), read(original)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
