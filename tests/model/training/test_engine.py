"""What becomes of an optimizer that is not known; the known ones are asked on real ranks in test_rollback.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from infra.errors import CalummaError
from model.training.engine import ask_before_steps


def test_an_optimizer_that_cannot_be_asked_is_refused() -> None:
    with pytest.raises(CalummaError, match="SimpleNamespace, which cannot be asked before it moves"):
        ask_before_steps(SimpleNamespace(optimizer=SimpleNamespace()), lambda norm: True)
