from __future__ import annotations

import pytest
from pydantic import ValidationError

from infra.errors import RecipeError
from tasks.recipe import parse_recipe
from tasks.scan.config import ScanConfig, ScorerConfig
from tasks.scan.languages import CODES


def test_the_codes_are_those_of_the_model() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert {str(code) for code in LanguageIdentifier.from_model_file(MODEL_FILE).nb_classes} == CODES


def test_languages_that_no_text_is_told_to_be_in_are_refused() -> None:
    assert ScanConfig(languages=("en", "de", "und")).languages == ("en", "de", "und")
    for code in ("english", "EN", "xx", ""):
        with pytest.raises(ValidationError, match=f"`languages` has {code!r}"):
            ScanConfig(languages=("en", code))


def test_a_scorer_that_lets_nothing_stay_is_refused() -> None:
    for bounds in ({}, {"min": 0.5}, {"max": 0.5}, {"min": 0.5, "max": 0.5}, {"min": 0.1, "max": 0.5}):
        ScorerConfig.model_validate({"name": "a", "type": "nsfw"} | bounds)
    with pytest.raises(ValidationError, match=r"scorer 'a': `min` is 0\.9 and `max` is 0\.1"):
        ScorerConfig(name="a", type="nsfw", min=0.9, max=0.1)


def test_a_recipe_names_the_key() -> None:
    scan = {"languages": ["english"], "scorers": [{"name": "a", "type": "nsfw", "min": 2, "max": 1}]}
    with pytest.raises(RecipeError) as e:
        parse_recipe({"name": "x", "scan": scan})
    assert "scan.languages: " in str(e.value)
    assert "scan.scorers.0: scorer 'a': `min` is 2" in str(e.value)
