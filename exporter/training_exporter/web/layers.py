# SPDX-License-Identifier: Apache-2.0
"""The layers of the model on the landing page: those with the largest gradients, and a culprit."""

from __future__ import annotations

from html import escape

from training_exporter.layers.shown import LayerView
from training_exporter.web.panels import number_shown, table_of
from training_exporter.wording import count

SHOWN = 5
"""How many layers the page has room for; the metrics have all of them."""


def layer_section(view: LayerView | None) -> str:
    """The layers with the largest gradient norms; nothing before the first pass."""
    if view is None:
        return ""
    rows = [_row(view, at) for at in view.largest(SHOWN)]
    largest = table_of(("Layer", "Gradient norm", "Update ratio"), rows) if rows else ""
    part = ", the parts that this process has" if any(view.reading.shards) else ""
    return (
        f'<section class="card layers"><h2>Layers <small>largest gradients at step '
        f"{count(view.reading.step)}{part}</small></h2>{_culprit(view)}{largest}</section>"
    )


def _row(view: LayerView, at: int) -> str:
    reading = view.reading
    numbers = (reading.grad_norm[at], reading.update_ratio[at])
    cells = "".join(f'<td class="right">{number_shown(number)}</td>' for number in numbers)
    return f'<tr><th scope="row">{escape(reading.layers[at])}</th>{cells}</tr>'


def _culprit(view: LayerView) -> str:
    """Where gradients stopped being finite, in red while they still are not."""
    bad = sum(map(bool, view.reading.non_finite))
    now = (
        f"NaN or Inf in the gradients of {bad} of {len(view.reading.layers)} layers" if bad else ""
    )
    first = ""
    if view.first is not None:
        where = f"<strong>{escape(view.first.layer)}</strong> at step {count(view.first.step)}"
        first = f"first non-finite gradient in {where}"
    text = "; ".join(filter(None, (first, now)))
    return f'<p class="{"bad" if bad else "quiet"}">{text}</p>' if text else ""
