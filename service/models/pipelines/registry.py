"""Which pipelines there are, by the class that model_index.json names."""

from __future__ import annotations

from service.models.pipelines.flux import Flux
from service.models.pipelines.flux2_klein import Flux2Klein
from service.models.pipelines.pipeline import Pipeline
from service.models.pipelines.pixart_sigma import PixArtSigma
from service.models.pipelines.qwen_image import QwenImage
from service.models.pipelines.sana import Sana, SanaSprint
from service.models.pipelines.stable_diffusion import StableDiffusion
from service.models.pipelines.stable_diffusion_3 import StableDiffusion3
from service.models.pipelines.stable_diffusion_xl import StableDiffusionXL
from service.models.pipelines.z_image import ZImage

FAMILIES: dict[str, type[Pipeline]] = {
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "Flux2KleinPipeline": Flux2Klein,
    "QwenImagePipeline": QwenImage,
    "ZImagePipeline": ZImage,
    "StableDiffusionPipeline": StableDiffusion,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "PixArtSigmaPipeline": PixArtSigma,
    "SanaPipeline": Sana,
    "SanaSprintPipeline": SanaSprint,
}
