"""As much of PromQL as the alert rules use, on samples in memory; promql-parser reads the expressions.

An instant vector is a mapping from a series' labels (its name among them) to its value. ``rate`` and
``increase`` are without Prometheus's extrapolation to the edges of their window, on which no rule rests.
"""

import itertools
import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import promql_parser as ast

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
# Samples of each series by the second they were taken.
Samples = Mapping[Labels, Mapping[int, float]]

LOOKBACK_S = 300
NAME = "__name__"

_COMPARE: dict[str, Callable[[float, float], bool]] = {">": operator.gt, "<": operator.lt, "==": operator.eq}
_COMPUTE: dict[str, Callable[[float, float], float]] = {
    "*": operator.mul,
    "/": operator.truediv,
    "-": operator.sub,
}
_SERIES = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def labels_of(text: str) -> Labels:
    """``name{label="value", …}`` as labels."""
    name, _, rest = text.partition("{")
    return frozenset({(NAME, name.strip()), *_SERIES.findall(rest)})


def values_of(text: str) -> list[float | None]:
    """promtool's notation: ``1x3`` is four ones, ``0+2x3`` counts up by two, ``_`` is a sample missing."""
    values: list[float | None] = []
    for word in text.split():
        if word == "_":
            values.append(None)
            continue
        found = re.fullmatch(r"(-?\d+)(?:([+-]\d+))?(?:x(\d+))?", word)
        assert found, word
        start, step, times = int(found[1]), int(found[2] or 0), int(found[3] or 0)
        values += [start + step * n for n in range(times + 1)]
    return values


def evaluate(expression: Any, samples: Samples, at: int) -> Vector | float:
    """The value of a parsed expression ``at`` a second."""
    match expression:
        case ast.NumberLiteral():
            return float(expression.val)
        case ast.ParenExpr():
            return evaluate(expression.expr, samples, at)
        case ast.VectorSelector():
            return {
                labels: series[newest]
                for labels, series in _selected(expression, samples)
                if (newest := max((s for s in series if at - LOOKBACK_S < s <= at), default=-1)) >= 0
            }
        case ast.BinaryExpr():
            return _binary(expression, samples, at)
        case ast.AggregateExpr():
            return _aggregate(expression, samples, at)
        case ast.Call():
            return _FUNCTIONS[expression.func.name](expression.args, samples, at)
    raise NotImplementedError(type(expression))


def selectors(expression: Any) -> Iterable[Any]:
    """Every selector of series in an expression."""
    match expression:
        case ast.VectorSelector():
            yield expression
        case ast.MatrixSelector():
            yield expression.vector_selector
        case ast.BinaryExpr():
            yield from (*selectors(expression.lhs), *selectors(expression.rhs))
        case ast.AggregateExpr() | ast.ParenExpr():
            yield from selectors(expression.expr)
        case ast.Call():
            for each in expression.args:
                yield from selectors(each)


def matchers_of(selector: Any) -> list[tuple[str, str, str]]:
    """A selector's matchers, each as label, operator and value."""
    signs = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
    return [(m.name, signs[str(m.op).rpartition(".")[2]], m.value) for m in selector.matchers.matchers]


def _selected(selector: Any, samples: Samples) -> Iterable[tuple[Labels, Mapping[int, float]]]:
    for labels, series in samples.items():
        own = dict(labels)
        if own[NAME] == selector.name and all(
            _matches(own.get(n, ""), sign, v) for n, sign, v in matchers_of(selector)
        ):
            yield labels, series


def _matches(own: str, sign: str, value: str) -> bool:
    found = re.fullmatch(value, own) is not None if "~" in sign else own == value
    return found is not sign.startswith("!")


def _nameless(labels: Labels) -> Labels:
    return frozenset(label for label in labels if label[0] != NAME)


def _binary(expression: Any, samples: Samples, at: int) -> Vector | float:
    left, right = (evaluate(side, samples, at) for side in (expression.lhs, expression.rhs))
    sign = str(expression.op)
    if isinstance(left, float) and isinstance(right, dict):
        return {_nameless(labels): _COMPUTE[sign](left, value) for labels, value in right.items()}
    assert isinstance(left, dict)
    others = {_nameless(labels): value for labels, value in right.items()} if isinstance(right, dict) else None
    result: Vector = {}
    for labels, value in left.items():
        other = right if isinstance(right, float) else (others or {}).get(_nameless(labels))
        if other is None:
            continue
        if sign in _COMPARE:
            if _COMPARE[sign](value, other):
                result[labels] = value
        else:
            result[_nameless(labels)] = _COMPUTE[sign](value, other)
    return result


def _aggregate(expression: Any, samples: Samples, at: int) -> Vector:
    combine = {"sum": sum, "max": max, "min": min}[str(expression.op)]
    by = set(expression.modifier.labels)
    groups: defaultdict[Labels, list[float]] = defaultdict(list)
    vector = evaluate(expression.expr, samples, at)
    assert isinstance(vector, dict)
    for labels, value in vector.items():
        groups[frozenset(label for label in labels if label[0] in by)].append(value)
    return {labels: combine(values) for labels, values in groups.items()}


def _increase(args: Any, samples: Samples, at: int) -> Vector:
    [matrix] = args
    result: Vector = {}
    for labels, series in _selected(matrix.vector_selector, samples):
        window = [series[s] for s in sorted(series) if at - matrix.range.total_seconds() <= s <= at]
        if len(window) >= 2:
            # A counter that is less than before has begun anew.
            steps = itertools.pairwise(window)
            result[_nameless(labels)] = sum(b - a if b >= a else b for a, b in steps)
    return result


def _rate(args: Any, samples: Samples, at: int) -> Vector:
    seconds = args[0].range.total_seconds()
    return {labels: value / seconds for labels, value in _increase(args, samples, at).items()}


def _histogram_quantile(args: Any, samples: Samples, at: int) -> Vector:
    wanted, vector = (evaluate(each, samples, at) for each in args)
    assert isinstance(wanted, float)
    assert isinstance(vector, dict)
    buckets: defaultdict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, value in vector.items():
        key = frozenset(label for label in _nameless(labels) if label[0] != "le")
        buckets[key].append((float(dict(labels)["le"]), value))
    return {labels: _quantile(wanted, sorted(each)) for labels, each in buckets.items()}


def _quantile(wanted: float, buckets: list[tuple[float, float]]) -> float:
    rank = wanted * buckets[-1][1]
    if rank == 0:
        return math.nan
    below, under = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            return under if math.isinf(bound) else under + (bound - under) * (rank - below) / (count - below)
        below, under = count, bound
    raise AssertionError("the last bucket holds everything")


def _absent(args: Any, samples: Samples, at: int) -> Vector:
    [selector] = args
    if evaluate(selector, samples, at):
        return {}
    return {frozenset((name, value) for name, sign, value in matchers_of(selector) if sign == "="): 1.0}


_FUNCTIONS = {"increase": _increase, "rate": _rate, "histogram_quantile": _histogram_quantile, "absent": _absent}
