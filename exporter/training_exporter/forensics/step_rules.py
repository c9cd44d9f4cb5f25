# SPDX-License-Identifier: Apache-2.0
"""What the step itself says about the cause of its NaN. None: nothing."""

from __future__ import annotations

from training_exporter.catalog import SOURCE_LOSS_SCALE
from training_exporter.forensics.history import is_first, is_rising, rate_jumped
from training_exporter.forensics.report import Labels, Report, TensorFinding, broken, shown
from training_exporter.forensics.sources import parameters_were_broken
from training_exporter.forensics.watch import COLLAPSED_SCALE

_MANY_OVERFLOWS = 10
"""Of the last steps: from the default 65,536 down to where most models fit takes fewer."""


def inputs(report: Report) -> str | None:
    """A tensor of the batch is not finite."""
    seen = report.inputs
    if seen is None or not seen.bad:
        return None
    if not seen.worst:
        return f"{seen.bad} of the batch's {seen.checked} tensors are not finite"
    return describe(seen.worst[0])


def labels_out_of_range(report: Report) -> str | None:
    """A label that is neither a class nor -100.

    torch's own losses refuse it, so that it matters for another loss only, and may be meant there.
    """
    return next((text for labels in report.labels if (text := _outside(labels))), None)


def _outside(labels: Labels) -> str | None:
    least, most, classes = labels.least, labels.most, labels.classes
    if least is not None and least < 0:
        return f"the smallest label in {labels.name} is {least}; torch's losses leave out only -100"
    if most is not None and classes is not None and most >= classes:
        return f"the largest label in {labels.name} is {most}, and the model has {classes} classes"
    return None


def all_labels_masked(report: Report) -> str | None:
    """The loss is broken, and a micro-batch has no label that counts."""
    if not broken(report.loss):
        return None
    masked = [labels for labels in report.labels if 0 < labels.elements == labels.ignored]
    return f"all {masked[0].elements} labels in {masked[0].name} are -100" if masked else None


def loss_scale_collapse(report: Report) -> str | None:
    """The gradients overflowed under a scale that was lowered again and again."""
    if report.source != SOURCE_LOSS_SCALE or report.loss_scale is None:
        return None
    if report.loss_scale < COLLAPSED_SCALE:
        return f"the loss scale has fallen to {shown(report.loss_scale)}"
    overflows = sum(broken(row.grad_norm) for row in report.steps)
    if overflows > _MANY_OVERFLOWS:
        return f"the gradients overflowed in {overflows} of the last {len(report.steps)} steps"
    return None


def loss_scale_search(report: Report) -> str | None:
    """The gradients overflowed under a scale that had no trouble so far."""
    if report.source != SOURCE_LOSS_SCALE or loss_scale_collapse(report):
        return None
    return f"the loss is finite, and the loss scale was {shown(report.loss_scale)}"


def half_precision(report: Report) -> str | None:
    """The loss itself is broken, and a loss scale means that fp16 is in use."""
    if not broken(report.loss) or report.loss_scale is None or _explained(report):
        return None
    return (
        f"the loss is {shown(report.loss)} in fp16 (the loss scale is {shown(report.loss_scale)})"
    )


def not_looked_at(report: Report) -> str | None:
    """The loss is broken, and neither the batch nor the weights are known."""
    if not broken(report.loss) or _explained(report) or _looked_at(report):
        return None
    return f"the loss is {shown(report.loss)}, and no more than the numbers of the steps was seen"


def loss_function(report: Report) -> str | None:
    """The loss is broken, and nothing known of the batch or the steps before explains it."""
    if not broken(report.loss) or _explained(report) or not _looked_at(report):
        return None
    batch = "could not be looked at" if report.inputs is None else "is finite"
    before = "no step came before" if is_first(report) else "the steps before were as usual"
    return f"the loss is {shown(report.loss)}, the batch {batch}, and {before}"


def backward(report: Report) -> str | None:
    """The loss is finite, its gradient is not, and no loss scale explains it."""
    if broken(report.loss) or report.loss is None or not broken(report.grad_norm):
        return None
    if report.loss_scale is not None or _explained(report):
        return None
    return f"the loss is {shown(report.loss)}, and the gradient norm is {shown(report.grad_norm)}"


def _looked_at(report: Report) -> bool:
    return report.inputs is not None or report.parameters is not None


def _explained(report: Report) -> bool:
    """Whether something with more evidence speaks already."""
    seen = report.inputs is not None and report.inputs.bad > 0
    earlier = parameters_were_broken(report) or is_rising(report) or rate_jumped(report)
    return bool(seen or all_labels_masked(report) or earlier)


def describe(found: TensorFinding) -> str:
    """A tensor in words."""
    shape = " x ".join(map(str, found.shape)) or "one number"
    return f"{found.name} ({shape}, {found.dtype}) holds {found.nan} NaN and {found.inf} Inf"
