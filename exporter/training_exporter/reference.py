# SPDX-License-Identifier: Apache-2.0
"""Metrics and detectors for a reader: the Markdown of docs/metrics.md and docs/detectors.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from inspect import Signature, getdoc, signature

from training_exporter.catalog import ANOMALY_KINDS, CATALOG, COMMON_LABELS, Metric
from training_exporter.detectors import PROFILES

_COMMON = " and ".join(f"`{label}`" for label in COMMON_LABELS)
METRICS_INTRODUCTION = f"""\
<!-- Made from exporter/training_exporter/catalog.py by `make docs`. -->
# Metrics

Every series has the labels {_COMMON} beside those named here: the run, whose name stays
the same over restarts, and the process in it. What is not known is absent: a run that never
evaluates has no `training_eval_loss`. Where the values of a label are known beforehand, they are
below the table, and counters start at 0 for each of them.
"""

DETECTORS_INTRODUCTION = """\
<!-- Made from exporter/training_exporter/detectors by `make docs`. -->
# Detectors

There are two profiles: `robust`, the default, which was tuned on real training logs, and
`textbook`, the published formulas as they stand. A detector judges each step. Findings at most ten
steps apart are one anomaly: it is counted once in `training_anomalies_total`, is one warning in the
log, and stays active in `training_anomaly_active` until ten steps in a row were quiet. Losses and
norms that are not finite are judged by `non_finite` alone; no other detector takes them in.

Options are set by kind: `PrometheusCallback(detectors={"loss_spike": {"jump": 2.0}})`, or in the
environment, `TRAINING_EXPORTER_DETECTORS="loss_spike.jump=2,throughput_drop.patience=20"`. A value
that makes no sense is refused with the valid range.
"""


def sections(catalog: Mapping[str, Metric] = CATALOG) -> dict[str, list[Metric]]:
    """The metrics of each section, in the catalogue's order."""
    found: dict[str, list[Metric]] = {}
    for metric in catalog.values():
        found.setdefault(metric.section, []).append(metric)
    return found


def metrics_markdown(catalog: Mapping[str, Metric] = CATALOG) -> str:
    """A heading and a table for each section, with the values of the labels that have a closed
    set of them."""
    parts = [METRICS_INTRODUCTION]
    for section, metrics in sections(catalog).items():
        parts.append("\n".join([f"\n## {section}\n", *_table(metrics), ""]))
        parts.extend(_values(metrics))
    return "".join(parts)


def metrics_lines(catalog: Mapping[str, Metric] = CATALOG) -> Iterator[str]:
    """A line for each metric: name, type, labels and meaning with tabs between, for programs."""
    for metrics in sections(catalog).values():
        for metric in metrics:
            yield "\t".join((metric.name, metric.kind, ",".join(metric.labels), metric.help))


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


def detectors_markdown() -> str:
    """A heading for each kind of anomaly; below it each profile's rule and options."""
    return DETECTORS_INTRODUCTION + "".join(
        f"\n## {kind}\n\nWhen {meaning}.\n{''.join(_rules(kind))}"
        for kind, meaning in ANOMALY_KINDS.items()
    )


def _rules(kind: str) -> Iterator[str]:
    """A paragraph for each profile that has the kind, one for both where they share it."""
    profiles: dict[type, list[str]] = {}
    for profile, build in PROFILES.items():
        for detector in build(None):
            if detector.kind == kind:
                profiles.setdefault(type(detector), []).append(profile)
    for detector_class, names in profiles.items():
        options = ", ".join(
            f"`{option.name}` = {option.default:g}"
            for option in signature(detector_class).parameters.values()
            if option.default is not Signature.empty
        )
        yield f"\n**{' and '.join(names)}.** {getdoc(detector_class)}\n"
        yield f"\nOptions: {options}.\n" if options else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
