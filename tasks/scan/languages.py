"""Which language a text is in, by py3langid (Lui and Baldwin, 2012): 97 languages, model packaged, deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

UNDETERMINED = "und"
"""ISO 639-2 for a language that cannot be told: no letters, or too little certainty."""


class Languages:
    """Identifies languages by the first characters of a text."""

    def __init__(self, min_score: float, chars: int) -> None:
        self._min_score, self._chars = min_score, chars

    @cached_property
    def _identifier(self) -> Any:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # here: the model takes a moment and 40 MB

        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def of(self, texts: Sequence[str]) -> str:
        """ISO 639-1 of all the texts together, or ``und``."""
        text = "\n".join(texts)[: self._chars]
        if not any(c.isalpha() for c in text):
            return UNDETERMINED
        language, score = self._identifier.classify(text)
        return str(language) if score >= self._min_score else UNDETERMINED
