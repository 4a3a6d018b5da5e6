"""Where and on what things run. Recorded with each run, never part of a fingerprint."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from infra.config import Config

AttentionBackend = Literal["auto", "reference", "sdpa", "flex", "xformers", "varlen"]
ActivationCheckpointing = Literal["none", "selective", "full"]


class ResourcesConfig(Config):
    """Workers, devices and the cluster's address."""

    ray_address: str | None = None
    """Ray's Jobs API (``http://host:8265``); None: a local Ray that the run starts and stops by itself."""
    data_workers: int = Field(default=2, ge=1)
    """Actors that scan, encode, tokenize and pack."""
    data_cpus: float = Field(default=0.5, gt=0)
    """CPUs that each of them reserves."""
    data_gpus: float = Field(default=0, ge=0)
    """GPUs of each actor that encodes pictures, or scores them; 0: it works on CPUs. Below 1, actors share one."""
    data_accelerator: str | None = None
    """Ray accelerator type that those of them with GPUs need, e.g. ``A100``; None: any. Those without run anywhere."""
    decode_threads: int | None = Field(default=None, ge=0)
    """Threads of an encoding actor that decode pictures while it encodes others; 0: it reads, decodes and encodes in
    turn. None: 0 on CPUs, which the encoder keeps busy alone; on a GPU as many as ``data_cpus``, at least 2."""
    stall_s: float = Field(default=3600, gt=0)
    """When no work item has finished for this long, progress says so."""
    max_quarantined: float = Field(default=1.0, gt=0, le=1)
    """A step stops when a larger share of a source's rows could not be read; 1: never. Counts from 100 rows on."""
    train_workers: int = Field(default=2, ge=1)
    train_cpus: float = Field(default=0.9, gt=0)
    accelerator: str | None = None
    """Ray accelerator type of training workers, e.g. ``A100``; None: CPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of training: bf16 keeps float32 master weights. auto: bf16 wherever the hardware multiplies it natively."""
    micro_batch: int = Field(default=8, ge=1)
    """Sequences a worker computes at once; gradients accumulate up to the batch."""
    attention_backend: AttentionBackend = "auto"
    """What computes attention: auto is what is fastest where it runs; the log says which (docs/model.md). All compute
    the same, up to rounding."""
    activation_checkpointing: ActivationCheckpointing = "none"
    """What the backward pass computes again instead of keeping it: selective: all but products and attention, which
    costs little time; full: whole layers, which keeps least."""
    compile: bool = False
    """Train through torch.compile, layer by layer: minutes at the start, and faster steps on a GPU."""
    deepspeed: dict[str, Any] = {}
    """Further sections of DeepSpeed's JSON, e.g. ``zero_optimization: {offload_optimizer: {device: cpu}}``."""
    cache_folder: str | None = None
    """Where training keeps packed sequences that it fetched from S3: a folder on a local disk of each node, shared by
    its workers. None: each worker keeps some in memory. A mixture on a local disk is read where it lies."""
    cache_gb: float = Field(default=20, gt=0)
    """Gigabytes of that folder, at most."""
    max_failures: int = Field(default=3, ge=0)
    """Worker deaths after which a step gives up; in training, deaths without a new checkpoint in between."""
    pending_deadline_s: float = Field(default=300, gt=0)
    """A job that has not started after this long is cancelled with an explanation."""
