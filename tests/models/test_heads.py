"""Heads on disk in their published layouts: what is read, what is shared with the model, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from service.models.heads import FeatureModule, MedusaHeads
from service.models.loading import ModelError, ModelSpec, TextModel, load_model
from tests.checkpoints import write_decoder
from tests.diffusion_checkpoints import write_layout
from tests.heads import add_mtp, write_eagle, write_medusa, write_mtp

CPU = torch.device("cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "model")


def load(text: str) -> TextModel:
    loaded = load_model(ModelSpec.parse(text), CPU)
    assert isinstance(loaded, TextModel)
    return loaded


def test_a_module_in_deepseeks_layout_is_read_from_a_folder_of_its_own(model: Path, tmp_path: Path) -> None:
    stored = load_file(write_mtp(tmp_path / "heads", model) / "model.safetensors")
    heads = load(f"m={model},heads={tmp_path / 'heads'}").heads
    assert isinstance(heads, FeatureModule) and heads.enorm is not None and heads.norm is not None
    assert torch.equal(heads.eh_proj.weight, stored["model.layers.2.eh_proj.weight"])
    assert torch.equal(heads.enorm.weight, stored["model.layers.2.enorm.weight"])
    assert torch.equal(heads.norm.weight, stored["model.layers.2.shared_head.norm.weight"])
    assert torch.equal(heads.layer.mlp.down_proj.weight, stored["model.layers.2.mlp.down_proj.weight"])


def test_a_module_inside_the_checkpoint_is_found_and_changes_nothing_of_the_model(model: Path, tmp_path: Path) -> None:
    tokens = torch.arange(20)
    before = load(f"m={model}")
    assert before.heads is None
    add_mtp(model)
    after = load(f"m={model}")
    assert isinstance(after.heads, FeatureModule)
    assert after.parameters == before.parameters
    assert torch.equal(after.network.embed(tokens), before.network.embed(tokens))


def test_heads_in_a_folder_of_that_name_beside_the_checkpoint_are_found(model: Path, tmp_path: Path) -> None:
    write_medusa(model / "heads", model)
    assert isinstance(load(f"m={model}").heads, MedusaHeads)
    write_mtp(tmp_path / "named", model)
    assert isinstance(load(f"m={model},heads={tmp_path / 'named'}").heads, FeatureModule)


@pytest.mark.parametrize("bias", [True, False])
def test_eagles_layout_has_no_norm_before_its_attention(model: Path, tmp_path: Path, bias: bool) -> None:
    stored = load_file(write_eagle(tmp_path / "heads", model, bias=bias) / "model.safetensors")
    heads = load(f"m={model},heads={tmp_path / 'heads'}").heads
    assert isinstance(heads, FeatureModule) and heads.norm is None and heads.layer.input_layernorm is None
    assert torch.equal(heads.eh_proj.weight, stored["fc.weight"])
    assert (heads.eh_proj.bias is not None) == bias


@pytest.mark.parametrize("prefix", ["", "medusa_head."])
@torch.no_grad()
def test_medusa_heads_compute_their_papers_formula(model: Path, tmp_path: Path, prefix: str) -> None:
    stored = load_file(write_medusa(tmp_path / "heads", model, prefix=prefix) / "model.safetensors")
    heads = load(f"m={model},heads={tmp_path / 'heads'}").heads
    assert isinstance(heads, MedusaHeads) and heads.depths == 3
    x = torch.randn(5, 32)
    block = x @ stored[f"{prefix}1.0.linear.weight"].T + stored[f"{prefix}1.0.linear.bias"]
    expected = (x + block * block.sigmoid()) @ stored[f"{prefix}1.1.weight"].T
    torch.testing.assert_close(heads.logits(x, 1), expected)


def _without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / "model.safetensors")

    return change


def _with(name: str, *shape: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, name: torch.zeros(shape)}, folder / "model.safetensors")

    return change


@pytest.mark.parametrize(
    "kind,change,message",
    [
        (write_mtp, _without("model.layers.2.hnorm.weight"), "tensor hnorm.weight is missing"),
        (write_mtp, _with("model.layers.2.hnorm.weight", 31), r"tensor model.layers.2.hnorm.weight has shape \(31,\), expected"),
        (write_mtp, _with("model.layers.2.eh_proj.weight", 48, 96), "hidden_size is 32: the heads are another model's"),
        (write_mtp, _with("model.layers.2.surprise.weight", 3), "tensors that the architecture does not have: model.layers.2"),
        (write_mtp, _without("model.layers.2.eh_proj.weight"), "holds no heads: there is neither"),
        (write_eagle, _with("fc.weight", 32, 96), r"tensor fc.weight has shape \(32, 96\), expected \(32, 64\)"),
        (write_eagle, _with("midlayer.hidden_norm.weight", 32), "midlayer.hidden_norm.weight are EAGLE-3's"),
        (write_medusa, _with("1.1.weight", 100, 32), "a vocabulary of 100, and the model has 264"),
        (write_medusa, _without("1.0.linear.bias"), "is missing from the checkpoint"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit_are_refused_by_name(
    model: Path, tmp_path: Path, kind: Callable[[Path, Path], Path], change: Callable[[Path], None], message: str
) -> None:
    change(kind(tmp_path / "heads", model))
    with pytest.raises(ModelError, match=message):
        load(f"m={model},heads={tmp_path / 'heads'}")


@pytest.mark.parametrize("key,value,message", [
    ("hidden_size", 64, "hidden_size 64 is not the model's, 32"),
    ("vocab_size", 300, "a vocabulary of 300, and the model has 264"),
    ("rope_scaling", 3, "rope_scaling must be an object"),
])  # fmt: skip
def test_heads_whose_config_is_another_models_are_refused(
    model: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    config = write_mtp(tmp_path / "heads", model) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    with pytest.raises(ModelError, match=message):
        load(f"m={model},heads={tmp_path / 'heads'}")


def test_pickled_heads_are_not_read(model: Path, tmp_path: Path) -> None:
    folder = write_medusa(tmp_path / "heads", model)
    (folder / "model.safetensors").rename(folder / "medusa_lm_head.pt")
    with pytest.raises(ModelError, match=r"medusa_lm_head.pt is not read: pickles can run code"):
        load(f"m={model},heads={folder}")


def test_who_guesses_and_who_verifies_must_say_the_next_token(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    canvas = tmp_path / "canvas"
    write_layout(canvas, "llada")
    shutil.copy(model / "tokenizer.json", canvas / "tokenizer.json")
    with pytest.raises(ModelError, match=r"draft_model is for models that say which token comes next"):
        load(f"m={canvas},draft_model={model}")
    with pytest.raises(ModelError, match=r"draft_model: .*canvas does not say which token comes next"):
        load(f"m={model},draft_model={canvas}")


def test_a_draft_model_must_read_and_write_the_same_tokens(model: Path, tmp_path: Path) -> None:
    small = write_decoder(tmp_path / "small", seed=1)
    loaded = load(f"m={model},draft_model={small}").draft_model
    assert loaded is not None and loaded.network.config.vocab_size == 264
    path = small / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(ModelError, match=r"draft_model: .*small has other tokens than .*model"):
        load(f"m={model},draft_model={small}")
    with pytest.raises(ModelError, match=r"draft_model: /nowhere is not a folder with a config.json"):
        ModelSpec.parse(f"m={model},draft_model=/nowhere")
