from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RecipeError
from tasks.mix.conditions import COLUMNS, Where


def where(**conditions: str) -> Where:
    return Where("mix.where.chat", conditions, ("aesthetic", "clip-b"))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["en", "de", None])), max_size=30))
def test_the_first_condition_that_fails_is_named_and_unknown_is_no(rows: list[tuple[int, str | None]]) -> None:
    found = where(short="tokens < 10", english="language = 'en'").failed(
        {"tokens": pa.array([n for n, _ in rows], pa.int32()), "language": pa.array([s for _, s in rows], pa.string())},
        len(rows),
    )
    assert found.tolist() == [1 if n >= 10 else 0 if s == "en" else 2 for n, s in rows]


def test_only_the_columns_that_are_spoken_of_are_needed() -> None:
    assert where(a="Tokens + IMAGE_tokens > 3 AND score_clip_b > 0.5").columns == (
        *("tokens", "image_tokens"),
        "score_clip_b",
    )
    assert where().failed({}, 3).tolist() == [0, 0, 0]
    assert where(always="true", never="1 = 2").failed({}, 2).tolist() == [2, 2]


def test_quotes_and_other_scripts() -> None:
    found = where(zen="category = '禅; select' OR category = 'ü\"'").failed(
        {"category": pa.array(["禅; select", "x", 'ü"'])}, 3
    )
    assert found.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("tokns < 3", "no column 'tokns'; did you mean 'tokens'"),
        ("xyzzy < 3", f"there are: {', '.join(COLUMNS)}"),
        ("score_asthetic > 1", "did you mean 'score_aesthetic'"),
        ("tokens <", "syntax error"),
        ("", "empty"),
        ("  -- nothing", "empty|syntax|single|selection"),
        ("tokens", "BIGINT, not true or false"),
        ("tokens < 3) OR (1 = 1", "syntax error"),
        ("tokens < 3; DROP TABLE x", "more than one"),
        ("tokens < 3, true", "single expression"),
        ("max(tokens) < 3", "aggregates"),
        ("(SELECT 1) = 1", "a query of its own"),
        ("random() < 0.5", "random does not follow from the document alone"),
        ("now() > TIMESTAMP '2020-01-01'", "now does not follow"),
        ("current_date > DATE '2020-01-01'", "current_date does not follow"),
        ("EXISTS (FROM read_csv('/etc/passwd'))", "."),
        ("getenv('HOME') = 'x'", "."),
        ("nosuch(tokens)", "nosuch"),
        ("category = 3", "."),
    ],
)
def test_what_is_no_condition_is_refused_with_its_key(condition: str, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?s)mix\.where\.chat\.odd: .*({message})") as refused:
        where(odd=condition).failed({"category": pa.array(["a"]), "tokens": pa.array([1])}, 1)
    assert "Expected one SQL condition" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_answers_do_not_depend_on_how_many_rows_come_together() -> None:
    lengths = np.random.default_rng(0).integers(0, 100, 5000)
    odd = where(odd="tokens % 2 = 1")
    whole = odd.failed({"tokens": pa.array(lengths)}, 5000)
    np.testing.assert_array_equal(whole, 1 - lengths % 2)
    halves = [odd.failed({"tokens": pa.array(part)}, len(part)) for part in np.array_split(lengths, 2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
