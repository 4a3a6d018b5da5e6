"""The base of every configuration class.

Configuration classes sit beside the code they configure and are composed into one recipe (``tasks/recipe.py``).
They import neither torch, Ray nor Prefect, so that a recipe can be read, checked and shown as a form in milliseconds.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen configuration: unknown keys and numbers that are not finite are refused, defaults are validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
