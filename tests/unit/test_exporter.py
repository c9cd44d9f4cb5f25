# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import math
import socket
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any
from urllib.request import Request, urlopen

import pytest
from prometheus_client import CollectorRegistry, Gauge

from training_exporter import ExporterConfig, StepSignals, TrainingExporter
from training_exporter.detectors.base import HEALTHY, Verdict
from training_exporter.sinks import Sink

RUN = {"run": "training", "rank": "0"}


@pytest.fixture
def exporter() -> TrainingExporter:
    return TrainingExporter(serve=False)


class Exploding:
    kind = "mine"

    def observe(self, signals: StepSignals) -> Verdict:
        raise RuntimeError("planted")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


class Silent(Exploding):
    def observe(self, signals: StepSignals) -> Verdict:
        return HEALTHY


def state(exporter: TrainingExporter) -> str:
    return exporter.status.state


def scrape(exporter: TrainingExporter) -> None:
    """As Prometheus does it."""
    request = Request(
        f"http://127.0.0.1:{exporter.port}/metrics",
        headers={"X-Prometheus-Scrape-Timeout-Seconds": "10"},
    )
    urlopen(request, timeout=5).close()


def test_a_block_that_ends_is_completed() -> None:
    """The end of the block is the end of the run."""
    with TrainingExporter(serve=False) as exporter:
        exporter.step(loss=1.0)
        assert state(exporter) == "running"

    assert state(exporter) == "completed"


@pytest.mark.parametrize(
    ("error", "expected", "failure"),
    [
        (ValueError("bad"), "crashed", "ValueError"),
        (KeyboardInterrupt(), "stopped", None),
        (SystemExit(0), "stopped", None),
    ],
)
def test_how_a_block_ends_tells_the_state(
    error: BaseException, expected: str, failure: str | None
) -> None:
    """The exception goes on to the user, and its class is kept."""
    exporter = TrainingExporter(serve=False)

    with pytest.raises(type(error)), exporter:
        raise error

    assert state(exporter) == expected
    assert exporter.status.failure == failure


def test_config_or_settings_but_not_both() -> None:
    """Two sources for one setting would leave it open which one holds."""
    with pytest.raises(TypeError, match="not both: port"):
        TrainingExporter(ExporterConfig(), port=1)


def test_unknown_detector_options_name_the_valid_ones() -> None:
    """A typing error in a threshold stops the start, not step 40,000."""
    with pytest.raises(ValueError, match="loss_spike"):
        TrainingExporter(ExporterConfig(serve=False, detectors={"loss_spiek": {"gamma": 2.0}}))


def test_a_detector_that_raises_is_logged_once_and_the_step_is_seen(
    logs: pytest.LogCaptureFixture,
) -> None:
    """A user's own detector cannot stop the training, nor hide the step."""
    exporter = TrainingExporter(serve=False, detectors=[Exploding()])

    for step in range(1, 4):
        exporter.observe(StepSignals(step, 0.0, loss=2.0))

    assert exporter.snapshot.totals.steps == 3
    assert exporter.health.errors["observe"] == 1
    assert "mine" in logs.text


def test_an_anomaly_is_one_line_in_the_log(
    exporter: TrainingExporter, logs: pytest.LogCaptureFixture
) -> None:
    """Ten NaN steps in a row are one warning, with step and meaning."""
    for step in range(1, 11):
        exporter.observe(StepSignals(step, 0.0, loss=math.nan))

    lines = [record for record in logs.records if "non_finite" in record.getMessage()]
    assert len(lines) == 1
    assert "step 1" in lines[0].getMessage()


def test_logged_values_are_capped_and_counted() -> None:
    """What goes beyond the cap is dropped, counted, and no error."""
    exporter = TrainingExporter(serve=False, max_logged_values=2)

    exporter.observe_logged({"a": 1, "b": None, "c": "x", "d": 2.0, "e": 3.0})

    assert exporter.status.logged == {"a": 1.0, "d": 2.0}
    assert exporter.health.dropped_series == 1


def test_an_evaluation_is_reported_with_its_loss_apart(exporter: TrainingExporter) -> None:
    """The loss has a metric of its own; the step is the last one seen."""
    exporter.observe(StepSignals(12, 0.0, loss=1.0))

    exporter.observe_evaluation({"loss": 2.0, "f1": 0.5, "note": "fine"}, dataset="dev")
    evaluation = exporter.snapshot.evaluations["dev"]

    assert (evaluation.step, evaluation.loss) == (12, 2.0)
    assert evaluation.metrics == {"f1": 0.5}


def test_pauses_have_a_state_and_are_counted(exporter: TrainingExporter) -> None:
    """During an evaluation the run is evaluating, afterwards what it was before."""
    exporter.set_state("running")

    with exporter.evaluating():
        during = state(exporter)
    with exporter.saving():
        saving = state(exporter)

    assert (during, saving, state(exporter)) == ("evaluating", "saving", "running")
    assert exporter.status.pauses["evaluation"] > 0
    assert exporter.status.pauses["logging"] == 0


def test_pauses_of_a_hand_written_loop_are_in_its_time_left(exporter: TrainingExporter) -> None:
    """Two evaluations ten steps apart tell that eight more are to come."""
    for step in range(1, 21):
        exporter.step(max_steps=100)
        if step % 10 == 0:
            with exporter.evaluating():
                pass
    snapshot = exporter.snapshot

    evaluation = snapshot.pauses["evaluation"]
    assert (evaluation.every, evaluation.start) == (10, 20)
    assert evaluation.seconds is not None
    assert snapshot.pace_seconds is not None
    assert snapshot.eta_seconds == pytest.approx(
        80 * snapshot.pace_seconds + 8 * evaluation.seconds
    )


def test_utilisation_in_a_hand_written_loop() -> None:
    """From the FLOPs that it tells of its steps, and the peak that is configured."""
    exporter = TrainingExporter(serve=False, peak_flops=1e9)
    for _ in range(3):
        exporter.step(flops=6e6, tokens=75, positions=100)

    rate = exporter.snapshot.flops_per_second
    shown = exporter.registry.get_sample_value
    assert rate is not None
    assert shown("training_mfu_ratio", RUN) == pytest.approx(rate / 1e9)
    assert shown("training_padding_ratio", RUN) == 0.25
    assert shown("training_model_flops_total", RUN) == 18e6


def test_a_configured_peak_wins(exporter: TrainingExporter) -> None:
    """Over what an integration takes from the table."""
    exporter.set_peak_flops(5e12)
    configured = TrainingExporter(serve=False, peak_flops=1e12)
    configured.set_peak_flops(5e12)

    assert exporter.status.peak_flops == 5e12
    assert configured.status.peak_flops == 1e12


def test_compute_is_added_up_by_phase(exporter: TrainingExporter) -> None:
    """What is no phase of the training is left out, and a step need not have all of them."""
    exporter.observe_compute({"forward_backward": 2.0, "optimizer": 0.5, "exporter": 9.0})
    exporter.observe_compute({"forward_backward": 1.0})

    assert exporter.status.compute == {"forward_backward": 3.0, "optimizer": 0.5}
    assert exporter.status.last_compute == {"forward_backward": 1.0}


def test_forward_passes_are_counted(exporter: TrainingExporter) -> None:
    """Absent where nobody sees them, and their time until it is known."""
    assert exporter.status.forward is None
    exporter.observe_forward()
    exporter.observe_forward(begun=1)
    assert exporter.status.forward == (1, 0, None)

    exporter.observe_forward(ended=1)
    exporter.observe_forward(seconds=0.25)
    exporter.observe_forward(seconds=0.5)

    assert exporter.status.forward == (1, 1, 0.75)
    series = exporter.registry.get_sample_value(
        "training_forward_passes_total", {**exporter.status.labels, "stage": "ended"}
    )
    assert series == 1


def test_a_run_that_goes_on_after_a_pause_has_got_on() -> None:
    """Its time is that at which it went on."""
    times = iter([10.0, 500.0])
    exporter = TrainingExporter(serve=False, clock=lambda: next(times))
    exporter.set_state("running")
    assert exporter.status.running_since == 10.0

    with exporter.evaluating():
        assert exporter.status.running_since == 10.0

    assert exporter.status.running_since == 500.0


def test_an_unknown_state_names_the_valid_ones(exporter: TrainingExporter) -> None:
    """As any other bad input."""
    with pytest.raises(ValueError, match="starting, running"):
        exporter.set_state("walking")


def test_a_users_own_metrics_are_on_the_same_page() -> None:
    """The registry is the user's or ours; two exporters in one process do not clash."""
    registry = CollectorRegistry()
    Gauge("my_gauge", "mine", registry=registry).set(7)

    TrainingExporter(serve=False, registry=registry)
    TrainingExporter(serve=False)

    assert registry.get_sample_value("my_gauge") == 7
    assert registry.get_sample_value("training_state", {**RUN, "state": "starting"}) == 1


def test_identify_does_not_override_what_the_user_configured() -> None:
    """An integration's idea of run and rank is a default."""
    exporter = TrainingExporter(serve=False, run="mine", rank=5)

    exporter.identify(run="output", rank=0, model="Llama")

    assert (exporter.status.run, exporter.status.rank) == ("mine", 5)
    assert exporter.status.info["model"] == "Llama"
    with pytest.raises(ValueError, match="framework, model"):
        exporter.identify(colour="red")


def test_floats_need_no_torch(exporter: TrainingExporter) -> None:
    """A loop of plain numbers is a loop too."""
    for _ in range(3):
        exporter.step(loss=2.0, learning_rate=0.1, tokens=10, samples=2)

    assert exporter.registry.get_sample_value("training_step", RUN) == 3
    assert exporter.registry.get_sample_value("training_tokens_total", RUN) == 30


def test_nonsense_in_a_step_does_not_stop_the_loop(
    exporter: TrainingExporter, logs: pytest.LogCaptureFixture
) -> None:
    """A string for a loss, an unknown name: logged once, counted, and the next step is fine."""
    exporter.step(loss="high")
    exporter.step(lost=1.0)
    exporter.step(loss=2.0)

    assert exporter.health.errors["step"] == 2
    assert exporter.snapshot.signals is not None
    assert exporter.snapshot.signals.loss == 2.0


def test_waiting_for_data_is_counted_through_the_loader(exporter: TrainingExporter) -> None:
    """`exporter.data(loader)` gives the very batches, and counts the wait."""
    seen = []
    for batch in exporter.data([1, 2, 3]):
        seen.append(batch)
        exporter.step(loss=1.0)

    assert seen == [1, 2, 3]
    assert exporter.snapshot.totals.data_wait_seconds > 0


def test_an_exporter_that_is_dropped_is_freed() -> None:
    """Nothing of the package keeps a finished exporter alive."""
    import weakref

    exporter = TrainingExporter(serve=False)
    reference = weakref.ref(exporter)
    del exporter
    gc.collect()

    assert reference() is None


@pytest.mark.parametrize(("value", "rank"), [("2", 2), ("", 0), ("two", 0)])
def test_the_launcher_tells_the_rank(
    monkeypatch: pytest.MonkeyPatch, value: str, rank: int
) -> None:
    """RANK is taken when it is a number, whichever way the settings came."""
    monkeypatch.setenv("RANK", value)

    assert TrainingExporter(serve=False).status.rank == rank
    assert TrainingExporter(ExporterConfig(serve=False)).status.rank == rank
    assert TrainingExporter(serve=False, rank=7).status.rank == 7


def test_a_second_block_is_a_new_run() -> None:
    """The end of the first does not stick to the second."""
    exporter = TrainingExporter(serve=False)
    with pytest.raises(ValueError, match="bad"), exporter:
        raise ValueError("bad")

    with exporter:
        exporter.step(loss=1.0)
        with exporter.evaluating():
            during = exporter.status

    assert (during.state, during.failure) == ("evaluating", None)
    assert (exporter.status.state, exporter.status.failure) == ("completed", None)


def test_a_step_that_is_no_step_is_refused_and_the_next_one_is_fine(
    logs: pytest.LogCaptureFixture,
) -> None:
    """Text for a loss costs no detector its job, and no later step its place."""
    exporter = TrainingExporter(serve=False)

    for step in range(1, 101):
        loss: Any = "2.0" if step == 50 else 2.0
        exporter.observe(StepSignals(step, 0.0, loss=loss))
    ready = [status.kind for status in exporter.snapshot.anomalies if status.ready]

    assert exporter.snapshot.totals.steps == 99
    assert exporter.health.errors["observe"] == 1
    assert "loss_spike" in ready
    assert "loss must be a number" in logs.text


def test_each_detector_that_fails_is_logged(logs: pytest.LogCaptureFixture) -> None:
    """The second one is not hidden by the first."""
    other = Exploding()
    other.kind = "other"

    TrainingExporter(serve=False, detectors=[Exploding(), other]).observe(StepSignals(1, 0.0))
    later = TrainingExporter(serve=False, detectors=[LateExploding(1), LateExploding(2)])
    for step in (1, 2):
        later.observe(StepSignals(step, 0.0))

    assert "late1" in logs.text
    assert "late2" in logs.text


class LateExploding(Exploding):
    def __init__(self, step: int) -> None:
        self.kind = f"late{step}"
        self._step = step

    def observe(self, signals: StepSignals) -> Verdict:
        if signals.step == self._step:
            raise RuntimeError("planted")
        return HEALTHY


def test_one_registry_for_run_after_run() -> None:
    """The newest exporter's metrics are in it; a notebook's second run is no clash of names."""
    registry = CollectorRegistry()

    for run in ("first", "second"):
        TrainingExporter(serve=False, registry=registry, run=run).observe(StepSignals(1, 0.0))

    assert registry.get_sample_value("training_step", {"run": "second", "rank": "0"}) == 1
    assert registry.get_sample_value("training_step", {"run": "first", "rank": "0"}) is None


def test_the_end_can_still_be_scraped() -> None:
    """The page outlives the block, or nobody would ever see the run completed."""
    with TrainingExporter(port=0, address="127.0.0.1") as exporter:
        exporter.step(loss=1.0)
    with urlopen(f"{exporter.url}/metrics") as page:
        text = page.read().decode()
    exporter.close()

    assert 'state="completed"} 1.0' in text
    assert exporter.url is None


def test_an_exporter_that_is_dropped_takes_its_server_along() -> None:
    """A Trainer built again and again in a notebook does not eat up ports and threads."""
    before = set(threading.enumerate())
    exporter = TrainingExporter(port=0, address="127.0.0.1").start()
    started = set(threading.enumerate()) - before
    del exporter
    gc.collect()
    for thread in started:
        thread.join(5)

    assert started
    assert not [thread for thread in started if thread.is_alive()]


def test_another_port_than_the_wanted_one_is_a_warning(logs: pytest.LogCaptureFixture) -> None:
    """It is seen with Python's default logging too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exporter = TrainingExporter(port=port, address="127.0.0.1").start()
    exporter.close()

    record = next(record for record in logs.records if "is taken" in record.getMessage())
    assert record.levelname == "WARNING"
    assert str(port) in record.getMessage()


def test_sums_never_fall_and_never_are_nan(exporter: TrainingExporter) -> None:
    """Whatever a loop says its tokens and waits were."""
    for bad in (math.nan, math.inf, -500.0):
        exporter.observe(StepSignals(1, 0.0, tokens=bad, samples=bad, data_wait_seconds=bad))
    exporter.observe(StepSignals(2, 0.0, tokens=5.0, samples=1.0, data_wait_seconds=0.5))
    totals = exporter.snapshot.totals

    assert (totals.tokens, totals.samples, totals.data_wait_seconds) == (5.0, 1.0, 0.5)


def test_an_unknown_setting_names_what_was_meant() -> None:
    """A typing error in the script is told as plainly as one in the environment."""
    with pytest.raises(TypeError, match=r"unknown setting prot; did you mean port\?"):
        TrainingExporter(prot=1)


@pytest.mark.parametrize(("error", "active"), [(None, False), (ValueError("died"), True)])
def test_what_went_on_ends_with_the_run(error: Exception | None, active: bool) -> None:
    """A completed run does not go on alarming; one that crashed shows what it died of."""
    exporter = TrainingExporter(serve=False)
    exporter.observe(StepSignals(1, 0.0, loss=math.nan))

    exporter.finish(error)
    found = {status.kind: status for status in exporter.snapshot.anomalies}["non_finite"]

    assert (found.active, found.total) == (active, 1)


@pytest.mark.alone
def test_closing_may_wait_for_the_next_scrape() -> None:
    """Who closes in the middle of a process would take the end of the run away from a scraper."""
    exporter = TrainingExporter(port=0, address="127.0.0.1", linger=5.0)
    with exporter:
        scrape(exporter)
    port, began = exporter.port, monotonic()
    threading.Timer(0.5, scrape, [exporter]).start()

    exporter.close(linger=True)

    assert port is not None
    assert exporter.port is None
    assert 0.5 <= monotonic() - began < 3.0


@pytest.mark.parametrize("sinks", ["wandb", Sink(), 5])
def test_sinks_that_are_no_list(sinks: Any) -> None:
    """One alone is an easy mistake, and is told as what it is."""
    with pytest.raises(TypeError, match="sinks must be a list such as"):
        TrainingExporter(sinks=sinks)


def test_no_sinks() -> None:
    """None is what a script has that was given none."""
    assert TrainingExporter(serve=False, sinks=None)._sinks is None
