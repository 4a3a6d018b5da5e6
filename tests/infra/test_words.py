from __future__ import annotations

import pytest

from infra.words import size_in_words


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (75_650, "75.7 kB"),
        (4_200_000, "4.2 MB"),
        (999_600, "1 MB"),
        (2.87e12, "2.87 TB"),
        (1.2345e18, "1,234 PB"),
    ],
)
def test_bytes_in_words(count: float, expected: str) -> None:
    assert size_in_words(count) == expected
