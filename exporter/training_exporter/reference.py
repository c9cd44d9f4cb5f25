# SPDX-License-Identifier: Apache-2.0
"""The catalogue for a reader: by section, and as the Markdown of docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from training_exporter.catalog import ANOMALY_KINDS, CATALOG, COMMON_LABELS, Metric

_COMMON = " and ".join(f"`{label}`" for label in COMMON_LABELS)
INTRODUCTION = f"""\
<!-- Made from exporter/training_exporter/catalog.py by `make docs`. -->
# Metrics

Every series has the labels {_COMMON} beside those named here: the run, whose name stays
the same over restarts, and the process in it. What is not known is absent: a run that never
evaluates has no `training_eval_loss`. Where the values of a label are known beforehand, they are
below the table, and counters start at 0 for each of them.
"""


def sections(catalog: Mapping[str, Metric] = CATALOG) -> dict[str, list[Metric]]:
    """The metrics of each section, in the catalogue's order."""
    found: dict[str, list[Metric]] = {}
    for metric in catalog.values():
        found.setdefault(metric.section, []).append(metric)
    return found


def markdown(catalog: Mapping[str, Metric] = CATALOG) -> str:
    """A heading and a table for each section, with the values of the labels that have a closed
    set of them."""
    parts = [INTRODUCTION]
    for section, metrics in sections(catalog).items():
        parts.append("\n".join([f"\n## {section}\n", *_table(metrics), ""]))
        parts.extend(_values(metrics))
    return "".join(parts)


def _table(metrics: Iterable[Metric]) -> Iterator[str]:
    yield "| Name | Type | Labels | Meaning |"
    yield "|---|---|---|---|"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {_cell(metric.help)} |"


def _values(metrics: Iterable[Metric]) -> Iterator[str]:
    """A paragraph for each label of a section that has known values; equal ones once."""
    known = {(label, values) for metric in metrics for label, values in metric.values.items()}
    for label, values in sorted(known):
        if set(values) <= set(ANOMALY_KINDS):
            meanings = (f"| `{value}` | {_cell(ANOMALY_KINDS[value])} |" for value in values)
            yield "\n".join(["", f"| `{label}` | Meaning |", "|---|---|", *meanings, ""])
        else:
            yield f"\n`{label}` is one of {', '.join(f'`{value}`' for value in values)}.\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
