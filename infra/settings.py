"""Where and on what things run. Recorded with each run, never part of a fingerprint."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from infra.config import Config


class ResourcesConfig(Config):
    """Workers, devices and the cluster's address."""

    ray_address: str | None = None
    """Ray's Jobs API (``http://host:8265``); None: a local Ray that the run starts and stops by itself."""
    data_workers: int = Field(default=2, ge=1)
    """Actors that scan, encode, tokenize and pack."""
    data_cpus: float = Field(default=0.5, gt=0)
    """CPUs that each of them reserves."""
    train_workers: int = Field(default=2, ge=1)
    train_cpus: float = Field(default=0.9, gt=0)
    accelerator: str | None = None
    """Ray accelerator type of training workers, e.g. ``A100``; None: CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of training: bf16 keeps float32 master weights. auto: bf16 wherever the hardware multiplies it natively."""
    micro_batch: int = Field(default=8, ge=1)
    """Sequences a worker computes at once; gradients accumulate up to the batch."""
    activation_checkpointing: bool = False
    deepspeed: dict[str, Any] = {}
    """Further sections of DeepSpeed's JSON, e.g. ``zero_optimization: {offload_optimizer: {device: cpu}}``."""
    max_failures: int = Field(default=3, ge=0)
    """Worker deaths after which a training step gives up."""
    pending_deadline_s: float = Field(default=300, gt=0)
    """A job that has not started after this long is cancelled with an explanation."""
