# SPDX-License-Identifier: Apache-2.0
"""PromQL with Grafana's variables in it, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import promql_parser

# Durations have to be durations before anything can be parsed; other variables stand in texts.
_INTERVALS = {
    "$__rate_interval": "1m",
    "$__interval": "15s",
    "$__range": "1h",
    "${__rate_interval}": "1m",
    "${__interval}": "15s",
    "${__range}": "1h",
}
_CHILDREN = ("lhs", "rhs", "expr", "param")


class Selector(NamedTuple):
    """A vector or matrix selector.

    Attributes:
        metric: its name.
        matchers: `label, operator, value` of each.
        function: the innermost function around it, None if there is none.
    """

    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    function: str | None


def parse(expr: str) -> promql_parser.Expr:
    """The syntax tree.

    Raises:
        ValueError: it is no PromQL.
    """
    for name, value in sorted(_INTERVALS.items(), reverse=True):
        expr = expr.replace(f"{name}_ms", "1000").replace(f"{name}_s", "60").replace(name, value)
    return promql_parser.parse(expr)


def error_in(expr: str) -> str | None:
    """What is wrong with an expression, None when it is PromQL."""
    try:
        parse(expr)
    except ValueError as error:
        return str(error)
    return None


def selectors(expr: str) -> list[Selector]:
    """Every selector of an expression."""
    return list(_walk(parse(expr), None))


def _walk(node: object, function: str | None) -> Iterator[Selector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield _selector(node, function)
    elif isinstance(node, promql_parser.MatrixSelector):
        yield _selector(node.vector_selector, function)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _walk(argument, node.func.name)
    else:
        for child in _CHILDREN:
            if hasattr(node, child):
                yield from _walk(getattr(node, child), function)


def _selector(node: promql_parser.VectorSelector, function: str | None) -> Selector:
    matchers = [
        (matcher.name, _operator(matcher), matcher.value) for matcher in node.matchers.matchers
    ]
    name = node.name or next((value for label, _, value in matchers if label == "__name__"), "")
    return Selector(name, tuple(matchers), function)


def _operator(matcher: object) -> str:
    kind = str(matcher.op)  # type: ignore[attr-defined]
    return {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}[re.sub(r".*\.", "", kind)]
