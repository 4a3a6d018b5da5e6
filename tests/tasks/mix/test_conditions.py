from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RecipeError
from tasks.mix.conditions import COLUMNS, Where
from tasks.mix.expressions import FUNCTIONS


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
        ("max(tokens) < 3", "function max is none"),
        ("(SELECT 1) = 1", "a query of its own"),
        ("EXISTS (FROM range(3))", "a query of its own"),
        ("tokens IN (FROM range(6))", "a query of its own"),
        ("tokens > (FROM (VALUES (3)))", "a query of its own"),
        ("tokens = ANY([1])", "a query of its own"),
        ("random() < 0.5", "function random is none of those that follow from the document alone"),
        ('"random"() < 0.5', "function random is none"),
        ("RANDOM() < 0.5", "function random is none"),
        ("main.random() < 0.5", "write random"),
        ("TRY(random() < 0.5)", "function random is none"),
        ("CASE WHEN random() < 0.5 THEN true ELSE tokens IN (1, 2) END", "function random is none"),
        ("[x > random() for x in [1]][1]", "function list_"),
        ("now() > TIMESTAMP '2020-01-01'", "function now is none"),
        ("\"now\"() > TIMESTAMP '2020-01-01'", "function now is none"),
        ("age(TIMESTAMP '2001-01-01') > INTERVAL 1 DAY", "function age is none"),
        ("current_localtime() > TIME '00:00'", "function current_localtime is none"),
        ("pg_sleep(1) IS NULL", "function pg_sleep is none"),
        ("version() = 'x'", "function version is none"),
        ("current_date > DATE '2020-01-01'", "no column 'current_date'"),
        ("\"current_date\" > DATE '2020-01-01'", "no column 'current_date'"),
        ("CURRENT_TIMESTAMP > DATE '2020-01-01'", "no column 'CURRENT_TIMESTAMP'"),
        ("localtime IS NOT NULL", "no column 'localtime'"),
        ("LOCALTIMESTAMP IS NOT NULL", "no column 'LOCALTIMESTAMP'"),
        ("current_user = 'duckdb'", "no column 'current_user'"),
        ("key::TIMESTAMPTZ IS NULL", "type TIMESTAMPTZ is none"),
        ("key::TIMESTAMP WITH TIME ZONE IS NULL", "type TIMESTAMP WITH TIME ZONE is none"),
        ("hash(key) % 2 = 0", "function hash is none"),
        ("row_number() OVER () < 3", "a window over other documents"),
        ("COLUMNS(*) > 0", "a star"),
        ("$1 > 0", "parameter"),
        ('"number of the row" = 1', "no column 'number of the row'"),
        ("x.tokens < 3", "no column 'x.tokens'; did you mean 'tokens'"),
        ("category.upper() = 'A'", "write upper\\(category"),
        ("EXISTS (FROM read_csv('/etc/passwd'))", "a query of its own"),
        ("getenv('HOME') = 'x'", "function getenv is none"),
        ("nosuch(tokens)", "nosuch"),
        ("lenght(key) < 3", "did you mean 'length'"),
        ("(" * 3000 + "true" + ")" * 3000, "."),
        ("category = 3", "."),
    ],
)
def test_what_is_no_condition_is_refused_with_its_key(condition: str, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"(?s)mix\.where\.chat\.odd: .*({message})") as refused:
        where(odd=condition).failed({"category": pa.array(["a"]), "tokens": pa.array([1])}, 1)
    assert "Expected one SQL condition" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "condition",
    [
        "category LIKE 'a%' AND category NOT ILIKE 'b_' AND category GLOB 'a*'",
        "NOT (category ~ 'z' OR category SIMILAR TO 'c+' OR category IN ('d', 'e'))",
        "tokens BETWEEN 1 AND 20 AND tokens::DOUBLE / 3 > 1.5 AND tokens % 2 + tokens // 2 - 1 > 0",
        "CASE WHEN tokens > 5 THEN length(upper(trim(category))) = 2 ELSE false END",
        "coalesce(nullif(category, 'x'), 'a') = category AND ifnull(tokens, 0) <> 0",
        "category[1] = 'a' AND substring(category FROM 1 FOR 1) = 'a' AND split_part(category, 'b', 1) = 'a'",
        "list_contains(['ab', 'c'], category) AND (category, tokens) IN (('ab', 9), ('c', 2))",
        "md5_number(category) % 100 >= 0 AND try_cast(category AS INTEGER) IS NULL AND greatest(tokens, 3) > 3",
        "tokens IS DISTINCT FROM 3 AND category COLLATE NOCASE = 'AB' AND DATE '2020-01-01' < DATE '2020-01-02'",
    ],
)
def test_what_conditions_are_made_of(condition: str) -> None:
    found = where(odd=condition).failed({"category": pa.array(["ab"]), "tokens": pa.array([9])}, 1)
    assert found.tolist() == [0]


def test_every_function_on_the_list_is_one_that_duckdb_knows_and_that_reads_no_clock() -> None:
    import duckdb

    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT function_name, stability FROM duckdb_functions() WHERE function_type IN ('scalar', 'macro')"
        ).fetchall()
    known = {name for name, _ in rows}
    assert FUNCTIONS - known <= {"coalesce", "ifnull"}  # which the parser makes operators of
    assert not FUNCTIONS & {name for name, stability in rows if stability not in ("CONSISTENT", None)}


def test_two_scorers_of_one_name_are_not_confused() -> None:
    with pytest.raises(RecipeError, match="several of clip-b, clip_b are score_clip_b here; rename a scorer"):
        Where("mix.where.a", {"odd": "score_clip_b > 0"}, ("clip-b", "clip_b"))
    Where("mix.where.a", {"odd": "tokens > 0"}, ("clip-b", "clip_b"))


def test_answers_do_not_depend_on_how_many_rows_come_together() -> None:
    lengths = np.random.default_rng(0).integers(0, 100, 5000)
    odd = where(odd="tokens % 2 = 1")
    whole = odd.failed({"tokens": pa.array(lengths)}, 5000)
    np.testing.assert_array_equal(whole, 1 - lengths % 2)
    halves = [odd.failed({"tokens": pa.array(part)}, len(part)) for part in np.array_split(lengths, 2)]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
