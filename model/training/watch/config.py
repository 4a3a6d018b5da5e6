"""Configuration of what is looked at while the transformer trains, and where its figures go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.config import Config


class WandbConfig(Config):
    """Figures to Weights & Biases, too. Who may write there is in the workers' environment (WANDB_API_KEY)."""

    project: str = "calumma"
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"
    """offline: into the step's folder, for ``wandb sync`` later."""


class MlflowConfig(Config):
    """Figures to MLflow, too. Who may write there is in the workers' environment (MLFLOW_TRACKING_TOKEN, …)."""

    tracking_uri: str
    """Of a server (``http://host:5000``), or a database (``sqlite:////path/mlflow.db``)."""
    experiment: str = "calumma"


class DrawingsConfig(Config):
    """Pictures that are drawn for held-out captions, sampled as ``generation`` says, and kept as a sheet."""

    every: int = Field(default=0, ge=0)
    """Steps between two sheets, the last of which is the finished model's; 0: none. Not with ZeRO 3."""
    pictures: int = Field(default=8, ge=1, le=12)
    """Held-out pairs of ``evaluation.source`` whose captions are asked for, the same at every sheet."""


class WatchConfig(Config):
    """What is looked at while the transformer trains. It changes nothing that is trained, and no fingerprint."""

    every: int = Field(default=20, ge=0)
    """Steps between two looks inside: attention logits, sizes of updates, memory; 0: never."""
    attention_positions: int = Field(default=64, ge=1)
    """Positions of a sequence, about, whose attention logits are looked at; of all heads and layers."""
    drawings: DrawingsConfig = DrawingsConfig()
    tensorboard: bool = True
    """Event files in the step's folder. ``metrics.jsonl`` is always written."""
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
