# SPDX-License-Identifier: Apache-2.0
"""The layers of a model on the landing page."""

from __future__ import annotations

import re
from math import nan

from training_exporter.layers.readings import ParameterNorms, ParameterTable
from training_exporter.layers.shown import FirstNonFinite, LayerBoard, LayerState, LayerView
from training_exporter.web.layers import layer_section


def view(*gradients: float, shards: bool = False, first: FirstNonFinite | None = None) -> LayerView:
    """Layers of which all weights changed by a thousandth."""
    number = len(gradients)
    names = tuple(f"layers.{index}.<b>.weight" for index in range(number))
    table = ParameterTable(names, (shards,) * number, (1,) * number)
    norms = ParameterNorms(1200, table, gradients, (1.0,) * number, (0.001,) * number, 1200)
    board = LayerBoard("block")
    board.state = LayerState(norms, {}, first)
    shown = board.view()
    assert shown is not None
    return shown


def rows(html: str) -> list[str]:
    return re.findall(r'<th scope="row">([^<]*)</th>', html)


def test_nothing_without_a_pass() -> None:
    """No empty table."""
    assert layer_section(None) == ""


def test_the_layers_with_the_largest_gradients() -> None:
    """Five of them, the largest first, with norm and update ratio."""
    html = layer_section(view(1.0, 7.0, 3.0, 5.0, 2.0, 6.0, 4.0))

    assert rows(html) == ["L1", "L5", "L3", "L6", "L2"]
    assert "0.001" in html
    assert "1,200" in html
    assert 'class="bad"' not in html


def test_the_culprit_in_red() -> None:
    """While gradients are not finite."""
    html = layer_section(view(1.0, nan, 3.0, first=FirstNonFinite("L1", 1190)))

    assert rows(html) == ["L2", "L0"]
    assert '<p class="bad">first non-finite gradient in <strong>L1</strong> at step 1,190' in html
    assert "1 of 3 layers" in html


def test_a_culprit_that_cannot_be_told() -> None:
    """Then the page says what there is, and no name."""
    html = layer_section(view(nan, nan))

    assert '<p class="bad">NaN or Inf in the gradients of 2 of 2 layers</p>' in html
    assert "first" not in html


def test_a_culprit_of_the_past() -> None:
    """Named still, but no alarm any more."""
    html = layer_section(view(1.0, 2.0, first=FirstNonFinite("L1", 3)))

    assert '<p class="quiet">first non-finite gradient in' in html


def test_parts_of_layers_say_so() -> None:
    """A norm of a part is no norm of the layer."""
    assert "parts that this process has" in layer_section(view(1.0, shards=True))


def test_names_are_escaped() -> None:
    """They come from a model."""
    shown = view(1.0)
    reading = shown.reading._replace(layers=("<script>",))
    assert "&lt;script&gt;" in layer_section(shown._replace(reading=reading))
