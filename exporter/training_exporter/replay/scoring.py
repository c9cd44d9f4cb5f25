# SPDX-License-Identifier: Apache-2.0
"""How well anomalies that were found match those that a person marked.

Labels of high or medium confidence are to be found. An anomaly is right when it overlaps such a
label. Labels of low confidence, restarts, and what overlaps them count neither way. Healthy runs
are those that are marked so and that no label of the kind touches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

HEALTHY, RESTART, LOW = "healthy", "restart", "low"
LABELS_OF: Mapping[str, tuple[str, ...]] = {
    "loss_spike": ("spike", "divergence"),
    "loss_plateau": ("plateau",),
    "gradient_explosion": ("explosion",),
    "gradient_vanishing": ("vanishing",),
    "non_finite": ("nan",),
}
"""Labels that each kind of anomaly is to find, beside those of its own name."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Label:
    """What a person marked: a kind of event, where it began and ended, and how sure they were."""

    kind: str
    first: int
    last: int
    confidence: str = "high"


@dataclass(frozen=True)
class Score:
    """How one detector did on one run."""

    wanted: int
    found: int
    right: int
    wrong: int
    delays: tuple[int, ...]
    healthy_rows: int


def labels_of(kind: str) -> tuple[str, ...]:
    """The labels that a kind of anomaly is to find."""
    return (kind, *LABELS_OF.get(kind, ()))


def score(alarms: Sequence[Span], rows: int, labels: Sequence[Label], kind: str) -> Score:
    """Compare the alarms of one kind in a run of so many rows with the run's labels."""
    ours = [label for label in labels if label.kind in labels_of(kind)]
    doubtful = [label for label in ours if label.confidence == LOW]
    doubtful += [label for label in labels if label.kind == RESTART != kind]
    neutral = [(label.first, label.last) for label in doubtful]
    marked = [(label.first, label.last) for label in ours if label.confidence != LOW]
    wanted = [span for span in marked if not _touches(span, neutral)]
    neutral += [span for span in marked if span not in wanted]
    right = [alarm for alarm in alarms if _touches(alarm, wanted)]
    wrong = [alarm for alarm in alarms if not _touches(alarm, wanted + neutral)]
    delays = []
    for first, last in wanted:
        starts = [alarm[0] for alarm in right if _touches(alarm, [(first, last)])]
        if starts:
            delays.append(max(0, min(starts) - first))
    healthy = not ours and any(label.kind == HEALTHY for label in labels)
    return Score(len(wanted), len(delays), len(right), len(wrong), tuple(delays), rows * healthy)


def _touches(span: Span, others: Iterable[Span]) -> bool:
    return any(span[0] <= last and first <= span[1] for first, last in others)


@dataclass(frozen=True)
class Summary:
    """The scores of one detector over all runs; None where there is nothing to divide by.

    Attributes:
        wanted: labels that it was to find.
        recall: share of them that it found.
        run_recall: the same, averaged over runs, so that no single log outweighs the others.
        precision, run_precision: share of its anomalies that were right.
        false_per_thousand: wrong ones in 1,000 rows of healthy runs.
        healthy_runs, healthy_alarmed: how many those are, and in how many of them there was one.
        delay: median from the beginning of a label to that of its anomaly.
    """

    wanted: int
    recall: float | None
    run_recall: float | None
    precision: float | None
    run_precision: float | None
    false_per_thousand: float | None
    healthy_runs: int
    healthy_alarmed: int
    delay: float | None


def summarise(scores: Sequence[Score]) -> Summary:
    """Add up, and average over runs."""
    with_labels = [s for s in scores if s.wanted]
    with_alarms = [s for s in scores if s.right + s.wrong]
    healthy = [s for s in scores if s.healthy_rows]
    delays = [delay for s in scores for delay in s.delays]
    rows = sum(s.healthy_rows for s in healthy)
    wanted = sum(s.wanted for s in scores)
    right = sum(s.right for s in scores)
    alarms = right + sum(s.wrong for s in scores)
    return Summary(
        wanted=wanted,
        recall=len(delays) / wanted if wanted else None,
        run_recall=fmean(s.found / s.wanted for s in with_labels) if with_labels else None,
        precision=right / alarms if alarms else None,
        run_precision=(
            fmean(s.right / (s.right + s.wrong) for s in with_alarms) if with_alarms else None
        ),
        false_per_thousand=1000 * sum(s.wrong for s in healthy) / rows if rows else None,
        healthy_runs=len(healthy),
        healthy_alarmed=sum(s.wrong > 0 for s in healthy),
        delay=median(delays) if delays else None,
    )
