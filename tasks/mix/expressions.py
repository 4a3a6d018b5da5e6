"""What a condition may say: its parsed expression holds columns, constants and listed functions, and nothing else.

DuckDB can say of a function that its answer follows from its arguments, but says it also of some that read the clock
(``age``, ``version``), and it reads words such as ``current_timestamp`` where there is no such column. So everything is
refused that is not listed here. A list also keeps conditions meaning the same from one version of DuckDB to the next:
``hash``, whose values have changed, is not on it, ``md5_number`` is.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

_OPERATORS = """+ - * / // % ^ ** & | ~ << >> || @ ~~ !~~ ~~* !~~* ~~~ ^@ like_escape not_like_escape ilike_escape
not_ilike_escape"""
_NUMBERS = """abs add bit_count cbrt ceil ceiling divide even exp factorial floor fdiv fmod gcd greatest isfinite isinf
isnan lcm least ln log log10 log2 mod multiply pi pow power round round_even sign sqrt subtract trunc xor"""
_TEXT = """array_extract array_slice ascii bit_length char_length character_length chr concat concat_ws contains
damerau_levenshtein editdist3 ends_with hamming instr jaccard jaro_similarity jaro_winkler_similarity lcase left
left_grapheme len length length_grapheme levenshtein lower lpad ltrim md5 md5_number md5_number_lower md5_number_upper
mismatches nfc_normalize octet_length ord position prefix regexp_escape regexp_extract regexp_extract_all
regexp_full_match regexp_matches regexp_replace regexp_split_to_array repeat replace reverse right right_grapheme rpad
rtrim sha1 sha256 split split_part starts_with str_split str_split_regex string_split string_split_regex
string_to_array strip_accents strlen strpos substr substring substring_grapheme suffix to_base64 translate trim ucase
unicode upper"""
_CHOICES = """array_contains array_has array_position array_value coalesce element_at if ifnull list_contains
list_element list_extract list_has list_has_all list_has_any list_indexof list_position list_slice list_value nullif row
struct_pack"""
FUNCTIONS = frozenset(" ".join((_OPERATORS, _NUMBERS, _TEXT, _CHOICES)).split())
_TYPES = """bigint bool boolean char date dec decimal double float float4 float8 hugeint int int1 int16 int2 int32 int4
int64 int8 integer integral list long numeric real short signed smallint string text timestamp tinyint ubigint
uhugeint uinteger usmallint utinyint varchar"""
TYPES = frozenset(_TYPES.split())
"""What may be cast to. Times with a time zone depend on where the machine stands."""
_CLASSES = (
    *("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"),
    *("OPERATOR", "TYPE"),
)
_OTHERS = {"SUBQUERY": "a query of its own", "WINDOW": "a window over other documents", "STAR": "a star"}


class NoCondition(Exception):
    """The expression holds what no condition may; the message says what."""


def columns_of(condition: str, known: Iterable[str]) -> set[str]:
    """The columns, of those ``known``, that an SQL expression names.

    Raises:
        NoCondition: it is more than one expression, or it holds what does not follow from these columns alone: a query,
            a column that is not known, a function or type that is not listed.
    """
    import duckdb

    if not condition.strip():
        raise NoCondition("it is empty")
    try:
        duckdb.SQLExpression(condition)  # one expression, and no clauses behind it
        with duckdb.connect(config={"enable_external_access": "false", "threads": 1}) as connection:
            found = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {condition}"]).fetchone()
        tree = json.loads(found[0] if found else "{}")
        if tree["error"]:
            raise NoCondition(tree["error_message"])
        nodes = list(_nodes(tree["statements"][0]["node"]["select_list"]))
    except duckdb.Error as e:
        raise NoCondition(str(e).splitlines()[0]) from e
    except RecursionError as e:
        raise NoCondition("it is nested too deeply") from e
    spelling = {name.casefold(): name for name in known}
    columns = set()
    for node in nodes:
        if node["class"] not in _CLASSES:
            what = _OTHERS.get(node["class"], node["class"].lower().replace("_", " "))
            raise NoCondition(f"{what} does not follow from the document alone")
        if node["class"] == "COLUMN_REF":
            name = ".".join(node["column_names"])
            if name.casefold() not in spelling:
                raise NoCondition(f"there is no column {name!r}; {_hint(name, spelling.values())}")
            columns.add(spelling[name.casefold()])
        elif node["class"] == "FUNCTION":
            if where := ".".join(filter(None, (node["catalog"], node["schema"]))):
                raise NoCondition(f"{where}.{node['function_name']}(…): write {node['function_name']}({where}, …)")
            if node["function_name"].casefold() not in FUNCTIONS:
                raise NoCondition(_unlisted("function", node["function_name"], FUNCTIONS))
        elif (kind := _type(node)) and kind.casefold() not in TYPES:
            raise NoCondition(_unlisted("type", kind, TYPES))
    return columns


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every part of a parsed expression, however deep."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for below in tree.values():
            yield from _nodes(below)
    elif isinstance(tree, list):
        for below in tree:
            yield from _nodes(below)


def _type(node: dict[str, Any]) -> str:
    """The type that a node names; DuckDB 1 keeps it in the cast, 2 beside it."""
    cast = node.get("cast_type") or {}
    return str(node.get("type_name") or cast.get("id") or "")


def _unlisted(what: str, name: str, listed: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.casefold(), listed, 1, 0.8)
    return f"{what} {name} is none of those that follow from the document alone" + (
        f"; did you mean {near[0]!r}?" if near else ""
    )


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
