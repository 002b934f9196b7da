"""Small random pipelines in diffusers' folder format, written with save_pretrained by the tests that load them."""
