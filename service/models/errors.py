from __future__ import annotations


class ModelError(Exception):
    """A model that cannot be served, and why."""
