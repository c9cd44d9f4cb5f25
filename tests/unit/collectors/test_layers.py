# SPDX-License-Identifier: Apache-2.0
"""The layers of a model on the page."""

from __future__ import annotations

from math import inf, nan
from threading import Thread

from prometheus_client import CollectorRegistry

from training_exporter.collectors.layers import LayerCollector
from training_exporter.layers.magnitudes import Magnitudes, MagnitudeTotals
from training_exporter.layers.readings import ParameterNorms, ParameterTable
from training_exporter.layers.shown import FirstNonFinite, LayerBoard, LayerState

COMMON = {"run": "r", "rank": "0"}
NAMES = ("embed.weight", "layers.0.up.weight", "layers.1.up.weight", "head.weight")


def state(
    gradients: tuple[float | None, ...] = (3.0, 4.0, nan, 2.0), *, shards: bool = False
) -> LayerState:
    table = ParameterTable(NAMES, (shards, shards, shards, False), (1, 1, 1, 1))
    norms = ParameterNorms(20, table, gradients, (10.0, 20.0, 30.0, 0.0), (0.1, None, 0.3, 0.1), 10)
    return LayerState(norms, {"L1.up": 3, "gone": 7}, FirstNonFinite("L1.up", 18))


def page(of: LayerState | None, *, most: int = 64) -> CollectorRegistry:
    board, registry = LayerBoard("module", most), CollectorRegistry()
    board.state = of
    registry.register(LayerCollector(lambda: COMMON, board.view))
    return registry


def series(registry: CollectorRegistry, name: str) -> dict[str, float]:
    """By layer."""
    return {
        sample.labels.get("layer", ""): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_nothing_before_the_first_pass() -> None:
    """No layers, no zeros."""
    assert list(page(None).collect()) == []


def test_each_layer() -> None:
    """What is known of it; a layer whose weights or change are unknown has no ratio."""
    registry = page(state())

    gradients = series(registry, "training_layer_grad_norm")
    assert str(gradients.pop("L1.up")) == "nan"
    assert gradients == {"embed": 3.0, "L0.up": 4.0, "head": 2.0}
    assert series(registry, "training_layer_param_norm")["L1.up"] == 30.0
    assert series(registry, "training_layer_update_ratio") == {"embed": 0.01, "L1.up": 0.01}
    assert series(registry, "training_layer_grad_to_param_ratio")["embed"] == 0.3
    assert "head" not in series(registry, "training_layer_grad_to_param_ratio")
    assert series(registry, "training_layer_step") == {"": 20.0}
    assert series(registry, "training_layers_folded") == {"": 0.0}


def test_counters_of_all_layers_begin_at_zero() -> None:
    """So that `increase` sees the first; a layer that there is no more has none."""
    assert series(page(state()), "training_layer_non_finite_total") == {
        "embed": 0, "L0.up": 0, "L1.up": 3, "head": 0,
    }  # fmt: skip


def test_the_culprits() -> None:
    """One series each: the largest finite norm, and where the NaN began."""
    registry = page(state())

    assert series(registry, "training_worst_layer_grad_norm") == {"L0.up": 4.0}
    assert series(registry, "training_first_non_finite_layer_step") == {"L1.up": 18}


def test_no_culprit() -> None:
    """Absent where no norm is finite, and where nothing was not finite."""
    registry = page(state((nan, inf, None, nan))._replace(first=None))

    assert series(registry, "training_worst_layer_grad_norm") == {}
    assert series(registry, "training_first_non_finite_layer_step") == {}


def test_parts_of_layers() -> None:
    """Their squares, which can be added up over ranks, and no norm that looks like the layer's."""
    registry = page(state((3.0, 4.0, 5.0, 2.0), shards=True))

    assert series(registry, "training_layer_grad_norm") == {"head": 2.0}
    assert series(registry, "training_layer_grad_shard_squares") == {
        "embed": 9.0, "L0.up": 16.0, "L1.up": 25.0,
    }  # fmt: skip
    assert series(registry, "training_layer_param_shard_squares")["L0.up"] == 400.0
    assert series(registry, "training_worst_layer_grad_norm") == {}


def test_layers_beyond_the_limit() -> None:
    """Together in one, and counted."""
    registry = page(state((3.0, 4.0, 6.0, 8.0)), most=3)

    assert series(registry, "training_layer_grad_norm") == {
        "embed": 3.0, "L0.up": 4.0, "other": 10.0,
    }  # fmt: skip
    assert series(registry, "training_layers_folded") == {"": 2.0}


def test_magnitudes() -> None:
    """A histogram over all passes, shares of the last one; also without a pass over layers."""
    totals = MagnitudeTotals()
    registry = CollectorRegistry()
    registry.register(LayerCollector(lambda: COMMON, lambda: None, lambda: totals))
    assert list(registry.collect()) == []

    counts = (3, *[0] * 60, 1)
    totals = totals.plus(
        Magnitudes(counts, 2.0**21, 8, zeros=2, flushed=1, subnormal=4, non_finite=4)
    )
    totals = totals.plus(
        Magnitudes(counts, 2.0**21, 4, zeros=1, flushed=0, subnormal=3, non_finite=0)
    )
    totals = totals.plus(Magnitudes(None, 0.0, 0, 0, 0, 0, 0))

    name = "training_gradient_magnitude"
    value = registry.get_sample_value
    assert value(f"{name}_bucket", {**COMMON, "le": str(2.0**-40)}) == 6
    assert value(f"{name}_bucket", {**COMMON, "le": "1048576.0"}) == 6
    assert value(f"{name}_bucket", {**COMMON, "le": "+Inf"}) == 8
    assert value(f"{name}_count", COMMON) == 8
    assert value(f"{name}_sum", COMMON) == 2.0**22
    shares = [
        value(f"training_gradient_{of}_ratio", COMMON) for of in ("zero", "underflow", "subnormal")
    ]
    assert shares == [0.25, 0.0, 0.75]


def test_a_pass_is_grouped_once() -> None:
    """However many look at it, from however many threads."""
    board = LayerBoard("module")
    board.state = state()
    views = [board.view()]
    threads = [Thread(target=lambda: views.append(board.view())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(views) == 4
    assert all(view is views[0] for view in views)
    board.state = state()
    assert board.view() is not views[0]
