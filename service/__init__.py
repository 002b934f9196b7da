"""Stride: one model-serving service for sequence expansion and state refinement."""

__version__ = "0.1.0"
