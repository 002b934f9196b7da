"""Models from the Hugging Face hub, or from its cache on this machine."""

from __future__ import annotations

from pathlib import Path

from service.models.errors import ModelError
from service.models.pipelines.index import INDEX, ModelIndex

FILES = ["*.safetensors", "*.json", "*.jinja"]
"""What is fetched: never pickles, never code."""
VARIANTS = [f"*.{kind}{end}*" for kind in ("fp16", "bf16", "int4", "non_ema") for end in ".-"]
"""Second copies of a pipeline's weights."""


def fetch(hub_id: str, revision: str | None) -> Path:
    """The folder of a repository's snapshot, downloaded if it is not in the cache; with HF_HUB_OFFLINE, only looked up.

    Raises ModelError when there is no such repository or revision, or when it is neither cached nor reachable.
    """
    # Slow to import, and only models that are not folders need it.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    named = hub_id if revision is None else f"{hub_id} at revision {revision}"
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[INDEX]))
        if (folder / INDEX).is_file():
            patterns = [INDEX, *ModelIndex.read(folder).files]
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=VARIANTS))
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=FILES))
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ModelError(f"there is no folder {hub_id}, and {named} is not in the hub's cache, while {why}") from error
    except (OSError, HFValidationError) as error:
        raise ModelError(f"there is no folder {hub_id}, and {named} cannot be had from the hub: {error}") from error
