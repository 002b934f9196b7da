"""LoRA adapters: each row of a forward gets what a network gives into whose weights the row's adapters were merged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from service.models import row_subset
from service.models.errors import ModelError
from service.models.lora import Chosen, LoraAdapters
from tests.adapters import RandomAdapter, merged, random_adapter
from tests.pipeline_checkpoints.parts import clip_encoder

LAYERS = ("stem", "body.0", "body.2", "windows", "head")


class Network(nn.Module):
    """Convolutions, layers over tokens and over windows cut out of rows, and one that gets all the rows' words in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8, bias=False))
        self.windows = nn.Linear(8, 8)
        self.words = nn.Sequential(nn.Linear(5, 8))
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, words: list[Tensor] | None = None) -> Tensor:
        rows = len(x)
        h = self.stem(x)
        tokens = h.flatten(2).transpose(1, 2)
        tokens = tokens + self.body(tokens)
        tokens = tokens + self.windows(tokens.reshape(rows * 4, -1, 8)).reshape(tokens.shape)
        if words is not None:
            told = self.words(torch.cat(words)).split([len(of_row) for of_row in words])
            tokens = tokens + torch.stack([of_row.mean(0) for of_row in told])[:, None]
        return self.head(self.grouped(tokens.transpose(1, 2).reshape(h.shape)))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def adapters(network: Network) -> dict[str, RandomAdapter]:
    return {
        "ink": random_adapter(network, LAYERS, rank=3, seed=1),
        "oil": random_adapter(network, ("body.0", "head"), rank=2, seed=2, strength=0.5),
    }


@pytest.fixture
def loaded(network: Network, adapters: dict[str, RandomAdapter], tmp_path: Path) -> LoraAdapters:
    files = {name: adapter.save(tmp_path / f"{name}.safetensors", alphas=True) for name, adapter in adapters.items()}
    return LoraAdapters(network, files)


ROWS: list[Chosen] = [(), (("ink", 1.0),), (("oil", 0.7), ("ink", -0.4)), (), (("oil", 1.5),), (("ink", 0.0),)]


def test_every_row_gets_the_network_with_its_adapters_merged_and_others_the_plain_one_bit_for_bit(
    network: Network, adapters: dict[str, RandomAdapter], loaded: LoraAdapters
) -> None:
    x = torch.randn(len(ROWS), 3, 8, 8, generator=torch.Generator().manual_seed(3))
    plain = network(x)
    with loaded.applied(ROWS):
        mixed = network(x)
    for index, row in enumerate(ROWS):
        if all(scale == 0 for _, scale in row):
            assert torch.equal(mixed[index], plain[index])
            continue
        expected = merged(network, [(adapters[name], scale) for name, scale in row])(x[index : index + 1])[0]
        assert (expected - plain[index]).abs().max() > 0.1
        torch.testing.assert_close(mixed[index], expected, rtol=1e-5, atol=1e-5)
        with loaded.applied([row]):
            torch.testing.assert_close(mixed[index], network(x[index : index + 1])[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(network(x), plain), "nothing outlives a call"
    assert not any(module._forward_hooks for module in network.modules())


def test_rows_that_all_use_one_adapter_get_it_too(
    network: Network, adapters: dict[str, RandomAdapter], loaded: LoraAdapters
) -> None:
    x = torch.randn(3, 3, 8, 8)
    scales = (0.2, 1.0, -0.6)
    with loaded.applied([(("ink", scale),) for scale in scales]):
        together = network(x)
    for index, scale in enumerate(scales):
        expected = merged(network, [(adapters["ink"], scale)])(x[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], expected, rtol=1e-5, atol=1e-5)


def test_rows_of_unlike_lengths_behind_one_another_are_told_apart_by_their_lengths(network: Network, tmp_path: Path) -> None:
    adapter = random_adapter(network, ("words.0", "body.0"), seed=4)
    loaded = LoraAdapters(network, {"ink": adapter.save(tmp_path / "ink.safetensors")})
    x = torch.randn(3, 3, 8, 8)
    words = [torch.randn(length, 5) for length in (2, 5, 1)]
    rows: list[Chosen] = [(), (("ink", 1.0),), (("ink", 0.5),)]
    plain = network(x, words)
    with loaded.applied(rows, {"words": [len(of_row) for of_row in words]}):
        mixed = network(x, words)
    assert torch.equal(mixed[0], plain[0])
    for index in (1, 2):
        with_it = merged(network, [(adapter, rows[index][0][1])])
        torch.testing.assert_close(mixed[index], with_it(x, words)[index], rtol=1e-5, atol=1e-5)
    with loaded.applied(rows), pytest.raises(ValueError, match=r"layer words.0: its input has 8 entries, which are not 3 rows"):
        network(x, words)
    lengths = {"words": [2, 5, 2]}
    with loaded.applied(rows, lengths), pytest.raises(ValueError, match=r"not 3 rows of the lengths \(2, 5, 2\)"):
        network(x, words)


def test_what_is_run_for_some_rows_of_a_call_gets_the_adapters_of_these(network: Network, loaded: LoraAdapters) -> None:
    x = torch.randn(len(ROWS), 3, 8, 8)
    with loaded.applied(ROWS):
        whole = network(x)
        with row_subset.only([4, 0, 1]):
            some = network(x[[4, 0, 1]])
        assert torch.equal(network(x), whole)
    torch.testing.assert_close(some, whole[[4, 0, 1]], rtol=1e-5, atol=1e-5)


def test_an_adapter_that_is_not_there_is_refused_by_name(loaded: LoraAdapters) -> None:
    with pytest.raises(ValueError, match="no LoRA adapter 'pen'; there are: ink, oil"), loaded.applied([(("pen", 1.0),)]):
        pass


def test_an_error_in_a_forward_leaves_nothing_behind(network: Network, loaded: LoraAdapters) -> None:
    with pytest.raises(RuntimeError), loaded.applied([(("ink", 1.0),)]):
        network(torch.zeros(1, 4, 8, 8))
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    "layout,prefix",
    [("peft", ""), ("peft", "base_model.model."), ("peft, named", ""), ("diffusers", "unet."), ("kohya", "lora_unet_")],
)
@pytest.mark.parametrize("alphas", [False, True])
def test_every_layout_says_the_same(network: Network, tmp_path: Path, layout: str, prefix: str, alphas: bool) -> None:
    adapter = random_adapter(network, LAYERS, seed=5, strength=0.25 if alphas else 1.0)
    loaded = LoraAdapters(network, {"ink": adapter.save(tmp_path / "ink.safetensors", prefix, layout, alphas)})
    x = torch.randn(2, 3, 8, 8)
    expected = merged(network, [(adapter, 1.0)])(x)
    with loaded.applied([(("ink", 1.0),)] * 2):
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


def test_alphas_of_metadata_and_of_an_adapter_config_count(network: Network, tmp_path: Path) -> None:
    """Patterns, and rank-stabilised strengths: alpha / sqrt(r)."""
    adapter = random_adapter(network, ("body.0", "body.2"), rank=4, seed=6)
    tensors = load_file(adapter.save(tmp_path / "plain.safetensors"))
    config = {"r": 4, "lora_alpha": 2, "alpha_pattern": {"body.2": 12}}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    save_file(tensors, tmp_path / "ink.safetensors", metadata)
    (tmp_path / "folder").mkdir()
    save_file(tensors, tmp_path / "folder" / "adapter_model.safetensors")
    (tmp_path / "folder" / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": True}))
    loaded = LoraAdapters(network, {"ink": tmp_path / "ink.safetensors", "stable": tmp_path / "folder"})
    x = torch.randn(1, 3, 8, 8)
    for name, strengths in {"ink": {"body.0": 0.5, "body.2": 3.0}, "stable": {"body.0": 1.0, "body.2": 6.0}}.items():
        parts = [(RandomAdapter({layer: adapter.halves[layer]}, strength), 1.0) for layer, strength in strengths.items()]
        expected = merged(network, parts)(x)
        with loaded.applied([((name, 1.0),)]):
            torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_networks_get_updates_of_their_own_dtype(adapters: dict[str, RandomAdapter], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network().eval().requires_grad_(False).to(torch.bfloat16)
    loaded = LoraAdapters(network, {"ink": adapters["ink"].save(tmp_path / "ink.safetensors")})
    x = torch.randn(2, 3, 8, 8).to(torch.bfloat16)
    with loaded.applied([(), (("ink", 1.0),)]):
        mixed = network(x)
    assert torch.equal(mixed[0], network(x)[0])
    expected = merged(network, [(adapters["ink"], 1.0)])(x)[1].float()
    assert (mixed[1].float() - expected).norm() < 0.03 * expected.norm()
    sizes = [down.numel() + up.numel() for down, up in adapters["ink"].halves.values()]
    assert loaded.bytes == 2 * sum(sizes)


@pytest.mark.parametrize(
    "names",
    [
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
         "text_encoder_2.text_model.encoder.layers.1.mlp.fc1.lora_A.weight"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight", "text_encoder_2.encoder.layers.1.mlp.fc1.lora_A.weight"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
         "lora_te2_text_model_encoder_layers_1_mlp_fc1.lora_down.weight"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
         "lora_te2_text_model_encoder_layers_1_mlp_fc1.lora_down.weight"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight",
         "text_encoder_2.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.down.weight"),
    ],
)  # fmt: skip
def test_text_encoders_are_adapted_for_those_texts_alone(network: Network, tmp_path: Path, names: tuple[str, str]) -> None:
    """By every name that files have for layers of CLIP, whichever class it is loaded as."""
    encoders = {"text_encoder": clip_encoder(80, projected=False), "text_encoder_2": clip_encoder(80, projected=True, seed=6)}
    layers = ("encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1")
    parts = [random_adapter(encoder, [layer], seed=7) for encoder, layer in zip(encoders.values(), layers, strict=True)]
    tensors = {}
    for name, layer, adapter in zip(names, layers, parts, strict=True):
        down, up = adapter.halves[layer]
        tensors |= {name: down, name.replace("lora_A", "lora_B").replace("down.weight", "up.weight"): up}
    tensors |= random_adapter(network, ["body.0"]).tensors("transformer.", "peft", alphas=False)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "ink.safetensors")
    loaded = LoraAdapters(network, {"ink": tmp_path / "ink.safetensors"}, encoders)
    assert loaded.text_names == ("ink",)
    ids, x = torch.arange(3 * 77).view(3, 77) % 80, torch.randn(1, 3, 8, 8)
    plain = network(x)
    for encoder, adapter in zip(encoders.values(), parts, strict=True):
        without, expected = encoder(ids)[0], merged(encoder, [(adapter, 0.5)])(ids)[0]
        with loaded.applied_to_texts((("ink", 0.5),)):
            torch.testing.assert_close(encoder(ids)[0], expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(network(x), plain), "the denoiser has no part in it"
        assert torch.equal(encoder(ids)[0], without)
        assert (expected - without).abs().max() > 0.01


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.mark.parametrize(
    "tensors,message",
    [
        ({"transformer.nose.lora_A.weight": zeros(2, 8), "transformer.nose.lora_B.weight": zeros(8, 2)},
         r"tensor transformer.nose.lora_A.weight: the network has no layer of that name"),
        ({"body.0.lora_A.weight": zeros(2, 8)}, "tensor body.0.lora_A.weight has no up half"),
        ({"body.0.lora_A.weight": zeros(2, 8), "body.0.lora_B.weight": zeros(16, 3)},
         r"ranks differ: tensor body.0.lora_A.weight \[2, 8\] has 2, and body.0.lora_B.weight \[16, 3\] has 3"),
        ({"body.0.lora_A.weight": zeros(2, 7), "body.0.lora_B.weight": zeros(16, 2)},
         r"tensor body.0.lora_A.weight: .* does not fit the layer body.0, whose weight is \[16, 8\]"),
        ({"body.0.lora_A.weight": zeros(2, 8), "body.0.lora_B.weight": zeros(8, 2)}, "does not fit the layer body.0"),
        ({"body.0.lora_A.weight": zeros(2), "body.0.lora_B.weight": zeros(8, 2)}, "are not two matrices"),
        ({"grouped.lora_A.weight": zeros(2, 2, 3, 3), "grouped.lora_B.weight": zeros(8, 2, 1, 1)}, "is a convolution in groups"),
        ({"body.0.lora_magnitude_vector": zeros(16)}, "body.0.lora_magnitude_vector: it belongs to DoRA"),
        ({"lora_unet_body_0.hada_w1_a": zeros(2, 8)}, "it belongs to LoHa"),
        ({"body.0.weight": zeros(16, 8)}, "tensor body.0.weight: it is no part of a LoRA adapter"),
        ({"text_encoder.layers.0.lora_A.weight": zeros(2, 8), "text_encoder.layers.0.lora_B.weight": zeros(8, 2)},
         "tensor text_encoder.layers.0.lora_A.weight: the text_encoder has no layer of that name"),
        ({"lora_te2_layers_0.lora_down.weight": zeros(2, 8), "lora_te2_layers_0.lora_up.weight": zeros(8, 2)},
         "tensor lora_te2_layers_0.lora_down.weight: the text_encoder_2 has no layer of that name"),
        ({"body.0.lora_A.weight": zeros(2, 8), "body.0.lora_B.weight": zeros(16, 2), "body.0.alpha": torch.tensor(torch.nan)},
         "tensor body.0.alpha must be one finite number"),
        ({"body.0.lora_A.weight": zeros(2, 8), "body.0.lora_B.weight": zeros(16, 2),
          "unet.body.0.lora_A.weight": zeros(2, 8), "unet.body.0.lora_B.weight": zeros(16, 2)}, "layer body.0 is updated twice"),
        ({}, "has no tensors"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_with_the_tensor_named(
    network: Network, tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "ink.safetensors")
    with pytest.raises(ModelError, match=rf"lora ink: .*{message}"):
        LoraAdapters(network, {"ink": tmp_path / "ink.safetensors"})


def test_what_is_no_safetensors_file_is_refused(network: Network, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"12345678 and then nothing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ink.ckpt").write_bytes(b"")
    messages = {
        "broken.safetensors": "is the file complete",
        "empty": "has neither pytorch_lora_weights.safetensors nor",
        "ink.ckpt": "pickles can run code",
        "none.safetensors": "there is no file",
    }
    for name, message in messages.items():
        with pytest.raises(ModelError, match=message):
            LoraAdapters(network, {"ink": tmp_path / name})


def test_kohyas_names_of_a_unet_are_read_as_diffusers_reads_them(tmp_path: Path) -> None:
    """By names of the published UNet, as most adapters of SDXL have them."""
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8, 8), layers_per_block=2, sample_size=8, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32,
        transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
    )  # fmt: skip
    inside = "transformer_blocks_0_attn2_to_k"
    names = {
        f"input_blocks_4_1_{inside}": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "input_blocks_5_1_proj_in": "down_blocks.1.attentions.1.proj_in",
        "input_blocks_7_1_transformer_blocks_1_ff_net_0_proj": "down_blocks.2.attentions.0.transformer_blocks.1.ff.net.0.proj",
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks_8_0_emb_layers_1": "down_blocks.2.resnets.1.time_emb_proj",
        f"middle_block_1_{inside}": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
        f"output_blocks_2_1_{inside}": "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_k",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_4_1_transformer_blocks_0_attn1_to_out_0": "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0",
        "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
        "input_blocks_0_0": "conv_in",
        "time_embed_0": "time_embedding.linear_1",
        "label_emb_0_2": "add_embedding.linear_2",
        "out_2": "conv_out",
    }
    adapter = random_adapter(unet, tuple(names.values()))
    tensors = {}
    for written, layer in names.items():
        tensors[f"lora_unet_{written}.lora_down.weight"], tensors[f"lora_unet_{written}.lora_up.weight"] = adapter.halves[layer]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "ink.safetensors")
    loaded = LoraAdapters(unet, {"ink": tmp_path / "ink.safetensors"})
    assert {layer for _, layer in loaded._updates["ink"]} == set(names.values())
    converted, _ = diffusers.StableDiffusionXLPipeline.lora_state_dict(tmp_path / "ink.safetensors", unet_config=unet.config)
    theirs = {re.sub(r"^unet\.|\.processor|[._]lora\.down\.weight$", "", name): tensor for name, tensor in converted.items()}
    for layer in names.values():
        name = layer.removesuffix(".0") if layer.endswith("to_out.0") else layer
        assert torch.equal(theirs[name], adapter.halves[layer][0])


def test_layers_that_were_published_as_one_are_updated_as_diffusers_does(tmp_path: Path) -> None:
    """FLUX.1 as kohya's scripts name it, and as its makers' own files do."""
    diffusers = pytest.importorskip("diffusers")
    flux = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    outputs = {
        "double_blocks.0.img_attn.qkv": 48, "double_blocks.0.txt_attn.qkv": 48, "double_blocks.0.img_attn.proj": 16,
        "double_blocks.0.txt_mlp.0": 64, "double_blocks.0.img_mod.lin": 96, "single_blocks.0.modulation.lin": 48,
    }  # fmt: skip
    inputs = dict.fromkeys(outputs, 16)
    generator = torch.Generator().manual_seed(0)
    halves = {
        name: (torch.randn(3, inputs[name], generator=generator), torch.randn(size, 3, generator=generator))
        for name, size in outputs.items()
    }
    adapter = RandomAdapter(halves, strength=0.5)
    files = {
        "kohya": adapter.save(tmp_path / "kohya.safetensors", "lora_unet_", "kohya", alphas=True),
        "makers": adapter.save(tmp_path / "makers.safetensors", "diffusion_model.", "peft", alphas=True),
    }
    loaded = LoraAdapters(flux, files)
    converted = diffusers.FluxPipeline.lora_state_dict(files["kohya"])
    assert len(loaded._updates["kohya"]) == len(converted) // 2 == 10
    for (_, layer), update in loaded._updates["kohya"].items():
        down, up = (converted[f"transformer.{layer}.lora_{half}.weight"] for half in "AB")
        torch.testing.assert_close(update.up @ update.down, up @ down)
        assert torch.equal(loaded._updates["makers"]["", layer].up, update.up)


def test_layers_of_flux_2_are_found_by_their_makers_names(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    flux = diffusers.Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2),
    )  # fmt: skip
    linear = {name: module for name, module in flux.named_modules() if isinstance(module, nn.Linear)}
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    published = {
        "double_blocks.0.img_mlp.0": f"{double}.ff.linear_in", "double_blocks.0.img_mlp.2": f"{double}.ff.linear_out",
        "double_blocks.0.txt_mlp.0": f"{double}.ff_context.linear_in",
        "double_blocks.0.txt_attn.proj": f"{double}.attn.to_add_out",
        "single_blocks.0.linear1": f"{single}.attn.to_qkv_mlp_proj", "single_blocks.0.linear2": f"{single}.attn.to_out",
        "single_stream_modulation.lin": "single_stream_modulation.linear", "img_in": "x_embedder",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    }  # fmt: skip
    halves = {
        name: (torch.randn(3, linear[layer].in_features), torch.randn(linear[layer].out_features, 3))
        for name, layer in published.items()
    }
    file = RandomAdapter(halves).save(tmp_path / "makers.safetensors", "diffusion_model.", "peft")
    updates = LoraAdapters(flux, {"ink": file})._updates["ink"]
    assert {layer for _, layer in updates} == set(published.values())
    converted = diffusers.Flux2Pipeline.lora_state_dict(file)
    for name, layer in published.items():
        assert torch.equal(updates["", layer].up, halves[name][1])
        assert torch.equal(converted[f"transformer.{layer}.lora_B.weight"], halves[name][1])


def test_parts_of_a_layer_that_was_published_as_one_must_fit(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k, self.to_v = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    network = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"attention": Block()})])})
    down, up = torch.randn(2, 8), torch.randn(16, 2)
    name = "diffusion_model.layers.0.attention.qkv"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "ink.safetensors")
    updates = LoraAdapters(network, {"ink": tmp_path / "ink.safetensors"})._updates["ink"]
    parts = [updates["", f"layers.0.attention.to_{part}"] for part in "qkv"]
    assert torch.equal(torch.cat([part.up @ part.down for part in parts]), torch.cat([part.up for part in parts]) @ down)
    assert torch.equal(torch.cat([part.up for part in parts]), up)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": torch.randn(24, 2)}, tmp_path / "ink.safetensors")
    with pytest.raises(ModelError, match=r"24 outputs are not those of layers.0.attention.to_q, .*: \[8, 4, 4\]"):
        LoraAdapters(network, {"ink": tmp_path / "ink.safetensors"})
