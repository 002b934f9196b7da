"""Picture models in diffusers' folder format as networks whose every evaluation is the engine's to place.

The networks, VAEs, text encoders and tokenisers are diffusers' and transformers' own classes; what a pipeline does around
them (prompt templates, packing, position ids, units of time, scaling of latents) is here, one small file a family.
"""
