"""Learning rates by group as a user types them: ``head=0.01``."""

import math
from collections.abc import Iterable, Mapping


def parsed_rate(text: str) -> tuple[str, float]:
    """Group and learning rate of a text; ValueError for anything else.

    >>> parsed_rate("head=0.01")
    ('head', 0.01)
    """
    group, equals, value = text.rpartition("=")
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not equals or not group or not 0 < rate < math.inf:
        advice = f"; type --freeze {group}" if rate == 0 else ""
        raise ValueError(f"rate must be GROUP=RATE with a positive rate such as head=0.01, got {text!r}{advice}")
    return group, rate


def rate_texts(rates: Mapping[str, float] | Iterable[str]) -> tuple[str, ...]:
    """The rates as texts, each of another group; ValueError for one that is not valid or is given twice."""
    texts = tuple(f"{k}={v}" for k, v in rates.items()) if isinstance(rates, Mapping) else tuple(rates)
    groups = [parsed_rate(text)[0] for text in texts]
    if twice := next((group for group in groups if groups.count(group) > 1), None):
        raise ValueError(f"rate must name each group once, got {twice!r} twice")
    return texts
