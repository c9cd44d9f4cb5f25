# SPDX-License-Identifier: Apache-2.0
"""What the catalogue says about one metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

UNIT_SUFFIXES: Final = (
    "seconds", "bytes", "ratio", "watts", "celsius", "hertz", "joules",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Attributes:
        name: the family's full name, a counter's `_total` included.
        kind: its Prometheus type.
        help: one sentence, as shown on the page.
        labels: its labels beside the common ones, in order.
        values: for a label whose values are known beforehand, those values.
        section: heading under which the documentation lists it.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    section: str = ""

    @property
    def unit(self) -> str:
        """The base unit that the name ends in, or an empty string."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in UNIT_SUFFIXES if stem.endswith(f"_{unit}")), "")
