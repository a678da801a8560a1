"""Products of decimals that are exact: `price * qty` in other people's SQL, without a cast.

DuckDB gives the product of two DECIMAL(38,18) the type DECIMAL(38,36), which holds less than 100.  Here each `*` of a
query whose factors are decimals becomes `exact_product(…)`: DECIMAL(38,18), the exact product or an error, never a
rounded number.  All else stays what DuckDB makes of it.

- Factors' types are what DuckDB itself says of them in their place: they are bound as columns of the same SELECT.
- Where they cannot be bound by themselves (a lambda's, a correlated subquery's) `*` stays DuckDB's own, which raises
  rather than being wrong; `product(a, b)` and `exact_product(a, b)` are there to be called by name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any, Final

import duckdb
import msgspec

# What the views' macros are made of (see `views`); `product` rounds half up at the 18th decimal, `exact_product` refuses.
MACROS: Final = """
CREATE MACRO halved(n) AS struct_pack(n := n, i := CAST(trunc(n) AS DECIMAL(20,0)),
    f := CAST(n - trunc(n) AS DECIMAL(18,18)));
CREATE MACRO halves(a, b) AS list_transform([struct_pack(a := a, b := b)],
    lambda p: struct_pack(a := halved(p['a']), b := halved(p['b'])));
CREATE MACRO tail(p) AS multiply(p['a']['f'], p['b']['f']);
CREATE MACRO summed(p) AS multiply(p['a']['n'], p['b']['i']) + multiply(p['a']['i'], p['b']['f'])
    + CAST(tail(p) AS DECIMAL(19,18));
CREATE MACRO product(a DECIMAL(38,18), b DECIMAL(38,18)) AS list_transform(halves(a, b), lambda p: summed(p))[1];
CREATE MACRO exact_product(a DECIMAL(38,18), b DECIMAL(38,18)) AS list_transform(halves(a, b), lambda p:
    CASE WHEN tail(p) <> CAST(tail(p) AS DECIMAL(19,18)) THEN
    CAST(plain(p['a']['n']) || ' * ' || plain(p['b']['n']) || ' (use product(a, b), which rounds)' AS DECIMAL(38,18))
    ELSE summed(p) END)[1];
"""
# Types whose values DECIMAL(38,18) holds, besides decimals.
_WHOLE: Final = frozenset(
    ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
)
# Binding each is a millisecond.
MAX_PRODUCTS: Final = 64

_DECIMAL: Final = re.compile(r"DECIMAL\(\d+,(\d+)\)")

_Node = dict[str, Any]


def exact(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The query with its products of decimals made exact; `sql` itself where there are none.

    `sql` must have passed `sandbox.check_query`.
    """
    [(tree,)] = connection.execute("SELECT json_serialize_sql($1::VARCHAR)", [sql]).fetchall()
    parsed: _Node = msgspec.json.decode(tree)
    if parsed.get("error"):
        return sql  # no query: its own error says so better
    statement: _Node = parsed["statements"][0]
    found = [
        (select, scope, products) for select, scope in _selects(statement, []) if (products := [*_products(select)])
    ]
    if sum(len(products) for _, _, products in found) > MAX_PRODUCTS:
        return sql
    # Columns keep the names that they have without us.
    names = [_names(connection, select) for select, _, _ in found]
    changed = False
    for (select, scope, products), own in zip(found, names, strict=True):
        # Inner ones before those that they are factors of.
        if sum(_improve(connection, select, scope, product) for product in products):
            changed = True
            for item, name in zip(select["select_list"], own, strict=True):
                item["alias"] = item["alias"] or name
    text = _text(connection, statement) if changed else sql
    try:
        connection.sql(text)
    except duckdb.Error:
        return sql  # whoever asked is told what is wrong with his words, not with ours
    return text


def _improve(connection: duckdb.DuckDBPyConnection, select: _Node, scope: list[_Node], product: _Node) -> bool:
    """Make one product exact if its factors are decimals."""
    factors = [argument["expression"] for argument in product["arguments"]]
    types = _types(connection, select, scope, factors)
    decimals = [_DECIMAL.fullmatch(t) for t in types]
    # Of more than 18 decimals, which only `multiply` makes, none may be lost either.
    fits = all(t in _WHOLE or (d is not None and int(d[1]) <= 18) for t, d in zip(types, decimals, strict=True))
    if not any(decimals) or not fits:
        return False
    product.update(function_name="exact_product", is_operator=False, qualified_name={"path": ["exact_product"]})
    return True


def _types(connection: duckdb.DuckDBPyConnection, select: _Node, scope: list[_Node], factors: list[_Node]) -> list[str]:
    """DuckDB's types of `factors` in this SELECT; none where they cannot be bound there."""
    bare: _Node = {"modifiers": [], "having": None, "qualify": None, "sample": None}
    ungrouped = {**bare, "group_expressions": [], "group_sets": [], "select_list": factors}
    # In the arguments of an aggregate and in WHERE rows are not grouped yet; everywhere else names of columns count too.
    for context in (ungrouped, {**bare, "select_list": [*select["select_list"], *factors]}):
        ctes = [entry for known in (*scope, select) for entry in known["cte_map"]["map"]]
        node = copy.deepcopy({**select, **context, "cte_map": {"map": ctes}})
        try:
            bound = connection.sql(_text(connection, {"node": node, "named_param_map": []}))
        except duckdb.Error:
            continue
        return [str(t) for t in bound.types[-len(factors) :]]
    return []


def _names(connection: duckdb.DuckDBPyConnection, select: _Node) -> list[str]:
    """What DuckDB calls the columns of a SELECT's list; "" where that is for it to say."""
    names = []
    for item in select["select_list"]:
        if item["class"] == "COLUMN_REF" or item["alias"] or _has_star(item):
            names.append("")
            continue
        alone = {**select, "modifiers": [], "cte_map": {"map": []}, "select_list": [item], "from_table": _NOTHING}
        alone |= {"where_clause": None, "group_expressions": [], "group_sets": [], "having": None, "qualify": None}
        names.append(_text(connection, {"node": alone, "named_param_map": []}).removeprefix("SELECT "))
    return names


_NOTHING: Final = {
    "type": "EMPTY",
    "alias": "",
    "sample": None,
    "query_location": 0,
    "query_location_length": 0,
}


def _text(connection: duckdb.DuckDBPyConnection, statement: _Node) -> str:
    tree = msgspec.json.encode({"error": False, "statements": [statement]}).decode()
    [(text,)] = connection.execute("SELECT json_deserialize_sql($1::JSON)", [tree]).fetchall()
    return str(text)


def _selects(value: Any, scope: list[_Node]) -> Iterator[tuple[_Node, list[_Node]]]:
    """Every SELECT below `value`, inner ones first, each with the nodes around it whose WITH it sees."""
    if isinstance(value, list):
        for part in value:
            yield from _selects(part, scope)
    elif isinstance(value, dict):
        inner = [*scope, value] if "cte_map" in value else scope
        for part in value.values():
            yield from _selects(part, inner)
        if value.get("type") == "SELECT_NODE":
            yield value, scope


def _products(select: _Node) -> Iterator[_Node]:
    """Every `*` of a SELECT itself, factors before their product."""
    waiting: list[tuple[Any, bool]] = [(v, False) for k, v in select.items() if k not in ("cte_map", "from_table")]
    waiting += [(condition, False) for condition in _conditions(select["from_table"])]
    while waiting:
        value, done = waiting.pop()
        if done:
            yield value
        elif isinstance(value, list):
            waiting.extend((part, False) for part in value)
        elif (
            isinstance(value, dict) and not str(value.get("type")).endswith("_NODE") and value.get("class") != "LAMBDA"
        ):
            if value.get("class") == "FUNCTION" and value["function_name"] == "*" and not _has_star(value):
                waiting.append((value, True))
            waiting.extend((part, False) for part in value.values())


def _has_star(value: Any) -> bool:
    """Whether `COLUMNS(…)` stands in it, which is many expressions."""
    if isinstance(value, dict):
        return value.get("class") == "STAR" or any(map(_has_star, value.values()))
    return isinstance(value, list) and any(map(_has_star, value))


def _conditions(table: Any) -> Iterator[Any]:
    """The conditions of the joins in a FROM."""
    while isinstance(table, dict) and table.get("type") == "JOIN":
        yield table.get("condition")
        yield from _conditions(table.get("right"))
        table = table.get("left")
