"""Every setting of the service, typed, made once: defaults, then an optional TOML file, then `STRIDE_*`, then flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

SCHEMES = ("http://", "https://")
STANDARD_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Settings(BaseSettings):
    """Handed down in parts; nothing else reads the environment."""

    model_config = SettingsConfigDict(env_prefix="STRIDE_", toml_file=None, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    models: list[str] = Field(["shakespeare", "shapes"], description="embedded names or NAME=PLACE, each with [,key=value...]")
    api_key: str | None = Field(None, min_length=1, description="when set, requests need `Authorization: Bearer KEY`")
    device: str = "cpu"
    threads: int = Field(0, ge=0, description="CPU threads of a forward; 0: all for long ones, one less for short ones")
    batch_invariant: bool = Field(False, description="bit-for-bit results whatever the batch, at a cost in speed")
    max_waiting: int = Field(1024, ge=1, description="requests in the queue before 429")
    max_running: int = Field(64, ge=1, description="requests of one model that hold memory at a time")
    row_budget: int = Field(32, ge=1, description="moves in one forward")
    token_budget: int = Field(512, ge=1, description="query tokens in one forward; longer prompts are chunked")
    kv_memory: int | None = Field(
        None, ge=1 << 20, description="bytes of paged KV cache per text model; by default 256 MiB, on a GPU what is left"
    )  # fmt: skip
    memory_fraction: float = Field(0.9, gt=0.0, le=1.0, description="share of a GPU's memory that is taken in all")
    cuda_graphs: bool = Field(True, description="capture decoding and evaluations of few rows, on a GPU")
    kv_block: int = Field(16, ge=1, description="tokens in a KV block")
    overlap: bool | None = Field(
        None, description="launch the next forward while one runs; by default where the device is a GPU"
    )  # fmt: skip
    prefix_cache: bool = Field(True, description="share KV blocks of equal beginnings, and keep them while there is room")
    max_body_bytes: int = Field(4 << 20, ge=1024)
    max_upload_bytes: int = Field(32 << 20, ge=1024, description="of a body with files, as pictures to change")
    max_n: int = Field(16, ge=1, description="outputs of one request")
    drain_seconds: float = Field(25.0, ge=0, description="for running and queued requests to finish after SIGTERM")
    drain_notice_seconds: float = Field(0.0, ge=0, description="listening and not ready after SIGTERM, at least")
    engine_silence_seconds: float = Field(
        300.0, gt=0, description="without a word from the engine until it counts as away; longer than any forward takes"
    )
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector (OTLP over HTTP) for spans; also from OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    log_format: Literal["human", "json"] = Field("human", description="of the lines on standard error")

    @field_validator("otlp_endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        """Empty, as templates leave it, is as if it were not given."""
        value = value or standard_endpoint()
        if value is not None and not value.startswith(SCHEMES):
            raise ValueError(f"a collector's address begins with http:// or https://, not {value!r:.80}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        standard = {"otlp_endpoint": endpoint} if (endpoint := standard_endpoint()) else {}
        last = InitSettingsSource(settings_cls, standard)
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls), last


def standard_endpoint() -> str | None:
    """The collector that OpenTelemetry's own variable names, often for everything on a machine; None where it is no address."""
    named = os.environ.get(STANDARD_ENDPOINT, "")
    return named if named.startswith(SCHEMES) else None


def load_settings(file: Path | None = None, **flags: Any) -> Settings:
    """Settings from flags (None means not given), `STRIDE_*`, and a TOML file. Raises pydantic.ValidationError."""

    class WithFile(Settings):
        model_config = SettingsConfigDict(env_prefix="STRIDE_", toml_file=file, extra="forbid")

    given = {name: value for name, value in flags.items() if value is not None}
    return Settings.model_validate(WithFile(**given).model_dump())
