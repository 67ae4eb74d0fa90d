"""Parser of the cost in a record: the number of forward passes in "2 * samples + 1 forward passes"."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

# Parameters whose names declare a maximum number of forward passes.
BUDGETS = ("budget", "evaluations", "forward_passes", "queries")
# Parameters that increase the number of forward passes.
SCALES = ("masks", "samples", "steps", *BUDGETS)
# Words that make a cost prose, because they count what is not a parameter.
_PROSE = re.compile(r"\b(?:some|about|each|every|few|hundreds?|thousands?|per)\b")
_OPERAND = r"\(*(?:\d+(?:\.\d+)?\s+)?(?:\d+(?:\.\d+)?|[a-z_]\w*)\)*"
_CLAUSE = re.compile(rf"({_OPERAND}(?:\s*(?:[-+*/^×]|\bx\b)\s*{_OPERAND})*)\s+forward\b")
_OPERATORS: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def announced(cost: str, parameters: Mapping[str, Any]) -> float | None:
    """Return the number of forward passes that a record's `cost` declares for these parameters, or None if it is prose.

    Every part of the form "EXPRESSION forward" counts. An expression consists of numbers, names of parameters,
    + - * / ^, and x for times: "samples + 1 forward pass and samples backward passes" is samples + 1.
    """
    if cost.strip() == "none":
        return 0.0
    clauses = _CLAUSE.findall(cost.lower())
    if not clauses or _PROSE.search(cost.lower()):
        return None
    try:
        return sum(_value(clause, parameters) for clause in clauses)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError):
        return None


def _value(expression: str, parameters: Mapping[str, Any]) -> float:
    text = re.sub(r"\bx\b|×", "*", expression).replace("^", "**")
    text = re.sub(r"(\d)\s+([a-z_(])", r"\1 * \2", text)
    return _evaluate(ast.parse(text.strip(), mode="eval").body, parameters)


def _evaluate(node: ast.expr, parameters: Mapping[str, Any]) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluate(node.left, parameters), _evaluate(node.right, parameters))
    value = parameters[node.id] if isinstance(node, ast.Name) else getattr(node, "value", None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{ast.unparse(node)} is not a number")
    return float(value)
