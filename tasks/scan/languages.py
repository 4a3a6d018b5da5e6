"""Which language a text is in, by py3langid (Lui and Baldwin, 2012): 140 languages, model packaged, deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

UNDETERMINED = "und"
"""ISO 639-2 for a language that cannot be told: no letters, or too little certainty."""

_CODES = """
ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr
fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko
ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru
rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue
zh zu zxx
"""
CODES = frozenset(_CODES.split())
"""What the model tells apart: ISO 639-1, of languages without such a code ISO 639-3. ``zxx`` is no language."""


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
