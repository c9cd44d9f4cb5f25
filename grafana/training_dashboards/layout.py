# SPDX-License-Identifier: Apache-2.0
"""Where panels stand: lines of 24 columns, each line as high as its highest panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model

from training_dashboards.frame import Row

COLUMNS: Final = 24
Placed: TypeAlias = "model.Panel | model.RowPanel"


def arrange(rows: Sequence[Row]) -> list[Placed]:
    """Return the panels of all rows with their places, those of closed rows inside of the row.

    Raises:
        ValueError: two panels or rows have the same id.
    """
    placed: list[Placed] = []
    y = 0
    for row in rows:
        if row.title:
            heading = _heading(row, y)
            placed.append(heading)
            y += 1
        panels, below = _flow(row.panels, y)
        if row.closed:
            heading.panels = panels
        else:
            placed += panels
            y = below
    _check_ids(placed)
    return placed


def _heading(row: Row, y: int) -> model.RowPanel:
    place = model.GridPos(x=0, y=y, w=COLUMNS, h=1)
    return model.RowPanel(collapsed=row.closed, title=row.title, grid_pos=place, id_val=row.id)


def _flow(builders: Sequence[Builder[model.Panel]], y: int) -> tuple[list[model.Panel], int]:
    """Place panels from left to right, in a new line where one does not fit; also say where the
    next line would begin."""
    placed = []
    x = height = 0
    for builder in builders:
        panel = builder.build()
        size = panel.grid_pos
        assert size is not None, "every panel has a size"
        if x + size.w > COLUMNS:
            x, y, height = 0, y + height, 0
        panel.grid_pos = model.GridPos(x=x, y=y, w=size.w, h=size.h)
        x, height = x + size.w, max(height, size.h)
        placed.append(panel)
    return placed, y + height


def _check_ids(placed: Sequence[Placed]) -> None:
    inner = [panel for row in placed if isinstance(row, model.RowPanel) for panel in row.panels]
    ids = [panel.id_val for panel in [*placed, *inner]]
    double = sorted({number for number in ids if ids.count(number) > 1}, key=str)
    if double:
        raise ValueError(f"panel ids that are used twice: {double}")
