# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 - the signs of good typography are what is tested
"""What a person sees of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from math import inf, nan

import pytest

from training_exporter.catalog import ANOMALY_KINDS, FINAL_STATES, RUN_STATES, runbook
from training_exporter.gpu.readings import AllocatorReading, GpuReading, GpuReadings
from training_exporter.history import CurveHistory
from training_exporter.program import program
from training_exporter.signals import Evaluation, StepSignals
from training_exporter.snapshot import Anomaly, AnomalyStatus, Best, Snapshot, Totals
from training_exporter.status import ReportNote, RunStatus
from training_exporter.web.curves import Curve, Mark, draw
from training_exporter.web.landing_page import render
from training_exporter.wording import ago, count, duration, number, share

NOW = 2_000.0
STATUS = RunStatus("tiny", 3, "running", {"model": "GPT", "profile": "robust"})


def snapshot(
    losses: Iterable[float] = (3.0, 2.0), *, recent: tuple[Anomaly, ...] = (), active: bool = False
) -> Snapshot:
    """A run with these losses, one step a second, the last of them at NOW."""
    history, signals = CurveHistory(), None
    losses = list(losses)
    for step, loss in enumerate(losses, 1):
        signals = StepSignals(
            step, NOW - len(losses) + step, loss, 0.5, 1.0, {"all": 3e-4}, max_steps=100,
            tokens=10, step_seconds=1.0,
        )  # fmt: skip
        history.add_all([replace(signals, grad_norm=1.0 / step)])
    statuses = tuple(
        AnomalyStatus(kind, ready, active, int(active), None, None, None, None)
        for kind, ready in (("loss_spike", True), ("eval_gap", False), ("mine", True))
    )
    totals = Totals(steps=len(losses), tokens=10.0 * len(losses), step_seconds=len(losses))
    return Snapshot(
        signals, 2.5, 0.6, totals, Totals(), (), statuses, recent,
        {"wiki": Evaluation(2, NOW - 200, "wiki", 2.25)}, history,
    )  # fmt: skip


class Page(HTMLParser):
    """Text and tags of a page; every tag that is opened must be closed."""

    VOID = frozenset({"meta", "link", "path", "line", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f"{data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


def page(status: RunStatus = STATUS, of: Snapshot | None = None, now: float = NOW) -> Page:
    return Page(render(status, of or snapshot(), now=now))


def test_the_run_at_a_glance() -> None:
    """Name, rank, state, step, time left, values, averages, rates and the last evaluation."""
    text = re.sub(r"\s+", " ", page().text)
    for words in (
        "tiny", "rank 3 · GPT · last step just now", "running", "Step 2 of 100 2.0 %", "98 s",
        "Loss 2 EMA 2.5", "Gradient norm 0.5 EMA 0.6 · clip 1", "Tokens / s 10", "Step time 1 s",
        "Learning rate 0.0003", "2.25 wiki, step 2, 3 min ago", "robust",
    ):  # fmt: skip
        assert re.sub(r"\s+", " ", words) in text.replace("1 min 38 s", "98 s")


def test_where_the_time_goes_is_in_the_notes() -> None:
    """Utilisation and padding beside the throughput, the split beside the step time."""
    busy = snapshot()
    totals = busy.totals._replace(positions=40.0, padding=10.0, flops=8e9)
    status = STATUS._replace(
        peak_flops=1e10, last_compute={"forward_backward": 0.75, "optimizer": 0.25}
    )

    text = re.sub(r"\s+", " ", page(status, busy._replace(totals=totals)).text)
    assert "20 in all · 25% padding · MFU 40%" in text
    assert "forward and backward 750 ms · optimiser 250 ms" in text
    assert "MFU" not in page(of=busy).text
    assert "padding" not in page(of=busy).text


def test_before_the_first_step() -> None:
    """Nothing is known yet, and nothing is made up."""
    before = snapshot([])._replace(loss_ema=None, grad_norm_ema=None, evaluations={})
    shown = page(of=before)
    assert "Before the first step" in shown.text
    assert "no step yet" in shown.text
    assert len([1 for span in shown.all("span") if span.get("aria-label") == "unknown"]) == 6


def test_nan_stands_out() -> None:
    """A NaN loss is shown as one, in red, while its average goes on."""
    html = render(STATUS, snapshot([3.0, 2.0, nan]), now=NOW)
    assert '<span class="nan">NaN</span>' in html
    assert "EMA 2.5" in html


@pytest.mark.parametrize("state", RUN_STATES)
def test_states(state: str) -> None:
    """Every state is named; the page of a run that is over stays as it is."""
    shown = page(STATUS._replace(state=state))
    assert state in shown.text
    refreshes = any(meta.get("http-equiv") == "refresh" for meta in shown.all("meta"))
    assert refreshes == (state not in FINAL_STATES)
    assert (" left" in shown.text) == (state not in FINAL_STATES)


def test_crash() -> None:
    """A crash comes with its class."""
    assert (
        "crashed · OutOfMemoryError"
        in page(STATUS._replace(state="crashed", failure="OutOfMemoryError")).text
    )


def test_a_stalled_run_stands_out() -> None:
    """A running run whose last step is long ago is marked, one that evaluates is not."""
    stale = '<strong class="bad">last step'
    assert stale in render(STATUS, snapshot(), now=NOW + 100)
    assert stale not in render(STATUS, snapshot(), now=NOW + 30)
    assert stale not in render(STATUS._replace(state="evaluating"), snapshot(), now=NOW + 100)


def test_anomalies() -> None:
    """Each anomaly says what it means, is drawn where it happened, and alarms while active."""
    recent = (
        Anomaly("loss_spike", 1, NOW - 130, 8.5, 4.0),
        Anomaly("mine", 2, NOW - 5, nan, 1.0),
    )
    shown = page(of=snapshot(recent=recent, active=True))
    assert ANOMALY_KINDS["loss_spike"] in shown.text
    assert "found by a detector of your own" in shown.text
    assert "8.5" in shown.text
    assert f"{ago(NOW - 130, NOW)}" in shown.text
    marks = [g for g in shown.all("g") if g.get("class") == "mark"]
    assert len(marks) == 3, "the spike on the loss, the unknown kind on both"
    assert shown.text.count("loss spike at step 1 ") == 1
    assert shown.text.count("mine at step 2 ") == 2
    assert "▲ active" in shown.text
    assert any(p.get("class") == "alarm" for p in shown.all("p"))
    assert [a.get("href") for a in shown.all("a") if a.get("href") == runbook("loss_spike")]


@pytest.mark.parametrize(
    ("value", "threshold", "cell"),
    [(8.5, 4.0, "4"), (nan, inf, ""), (0.0, 0.0, ""), (nan, 0.0, ""), (-1.0, 0.0, "0")],
)
def test_what_is_no_threshold_is_not_shown(value: float, threshold: float, cell: str) -> None:
    """None that is infinite, none that the value lies at, and none for a NaN, which passes none."""
    anomaly = Anomaly("mine", 1, NOW, value, threshold)
    html = render(STATUS, snapshot(recent=(anomaly,)), now=NOW)

    row = html[html.index("found by a detector of your own</small>") :]
    assert re.findall(r'<td class="right">(.*?)</td>', row)[2] == cell


def test_detectors() -> None:
    """A detector is ready or still warming up."""
    text = page().text
    assert text.count("● ready") == 2
    assert text.count("◌ warming up") == 1


GIB = 2.0**30
H100 = GpuReading(
    gpu="2", name="NVIDIA H100", driver_version="570.86", cuda_device=0, utilization=0.97,
    memory_used_bytes=60 * GIB, memory_total_bytes=80 * GIB, temperature_celsius=64.0,
    slowdown_celsius=87.0, power_watts=612.0, power_limit_watts=700.0,
    throttled={"gpu_idle": 0.0, "hw_thermal": 0.0}, xids={"79": 0.0},
)  # fmt: skip
ALLOCATOR = AllocatorReading(
    0, 40 * GIB, 52 * GIB, 56 * GIB, 58 * GIB, GIB, 79 * GIB, retries=0, out_of_memory=0
)


def gpu_page(
    *gpus: GpuReading, memory: tuple[AllocatorReading, ...] = (), **readings: object
) -> tuple[Page, str]:
    """The page and the words in its GPU section."""
    readings = {"timestamp": NOW - 2, **readings}
    shown = Page(
        render(STATUS, snapshot(), gpus=GpuReadings(gpus=gpus, **readings), memory=memory, now=NOW)  # type: ignore[arg-type]
    )
    text = re.sub(r"\s+", " ", shown.text)
    return shown, text[text.find(" GPU") : text.find("Last anomalies")]


def widths(shown: Page) -> list[tuple[str, float]]:
    """The parts of the memory bars, in percent."""
    return [
        (i["class"] or "", float((i["style"] or "").removeprefix("width:").removesuffix("%")))
        for i in shown.all("i")
        if "style" in i
    ]


def test_a_gpu_at_a_glance() -> None:
    """Name, load, memory from live tensors to all there is, temperature, power; each word said."""
    shown, text = gpu_page(H100, memory=(ALLOCATOR,))
    for words in (
        "NVIDIA H100", "GPU 2 cuda:0 97 % busy", "64 °C", "612 of 700 W",
        "allocated 40.0 GiB peak 52.0 GiB reserved 56.0 GiB used 60.0 GiB total 80.0 GiB",
        "allocated live tensors", "reserved these, and the allocator's cache for later ones",
        "used all processes together, CUDA contexts included", "peak most that live tensors held",
    ):  # fmt: skip
        assert words in text
    assert widths(shown) == [("allocated", 50.0), ("reserved", 20.0), ("used", 5.0)]
    assert [b["style"] for b in shown.all("b") if b.get("class")] == ["left:65.00%"]
    assert 'class="bad"' not in render(
        STATUS, snapshot(), gpus=GpuReadings(gpus=(H100,)), memory=(ALLOCATOR,), now=NOW
    )


def test_no_gpu_no_section() -> None:
    """Nor where a driver could be asked and has none."""
    for gpus in (GpuReadings(), GpuReadings(timestamp=NOW, stalled=False, failures={"other": 1})):
        assert "GPU" not in render(STATUS, snapshot(), gpus=gpus, now=NOW).partition("<main>")[2]


def test_each_gpu_has_the_allocator_of_its_own() -> None:
    """By the number that CUDA gives it; a device that no driver speaks of stands by itself."""
    others = [replace(H100, gpu=str(gpu), cuda_device=None) for gpu in (0, 1)]
    elsewhere = ALLOCATOR._replace(device=5, allocated_bytes=7 * GIB)
    _, text = gpu_page(*others, H100, memory=(elsewhere, ALLOCATOR))
    cards = re.split(r"GPU (?=\d)| (?=cuda:5)", text)[1:]
    assert [card.split(" ")[0] for card in cards] == ["0", "1", "2", "cuda:5"]
    assert ["allocated" in card for card in cards] == [False, False, True, True]
    assert "allocated 7.0 GiB peak 52.0 GiB reserved 56.0 GiB total 79.0 GiB" in cards[3]


def test_names_are_said_once_when_they_are_the_same() -> None:
    """And on each GPU when they differ."""
    assert gpu_page(H100, replace(H100, gpu="3"))[1].count("NVIDIA H100") == 1
    different = gpu_page(H100, replace(H100, gpu="3", name="NVIDIA A100"))[1]
    assert (different.count("NVIDIA H100"), different.count("NVIDIA A100")) == (1, 1)


@pytest.mark.parametrize(
    ("used", "allocated", "reserved", "drawn"),
    [
        (60, 40, 70, [50.0, 37.5, 0.0]),  # the driver was asked before the allocator grew
        (90, 40, 50, [50.0, 12.5, 37.5]),  # never beyond the end
        (60, 0, 0, [0.0, 0.0, 75.0]),
        (None, 40, 50, [50.0, 12.5, 0.0]),
        (60, None, None, [0.0, 0.0, 75.0]),
    ],
)
def test_the_bar_fits(
    used: float | None, allocated: float | None, reserved: float | None, drawn: list[float]
) -> None:
    """However readings of different moments go together."""

    def size(gib: float | None) -> float | None:
        return None if gib is None else gib * GIB

    gpu = replace(H100, memory_used_bytes=size(used))
    allocator = ALLOCATOR._replace(allocated_bytes=size(allocated), reserved_bytes=size(reserved))
    shown, _ = gpu_page(gpu, memory=(allocator,))
    assert [width for _, width in widths(shown)] == drawn


def test_a_gpu_that_says_little() -> None:
    """What is unknown is left out, and nothing is made up."""
    shown, text = gpu_page(GpuReading(gpu="0:1"))
    assert text.strip() == "GPU GPU 0:1"
    assert widths(shown) == []
    assert gpu_page(memory=(AllocatorReading(0),))[1].strip().startswith("GPU allocated live")


def test_what_is_wrong_with_a_gpu_stands_out() -> None:
    """Heat, the hardware's brakes, Xid errors and exhausted memory are red, usual limits not."""
    throttled = {"gpu_idle": 1.0, "sw_power_cap": 1.0, "hw_thermal": 1.0, "sync_boost": 0.0}
    gpu = replace(H100, throttled=throttled, temperature_celsius=88.0, xids={"79": 2.0, "13": 0.0})
    html = render(
        STATUS, snapshot(), gpus=GpuReadings(gpus=(gpu,)),
        memory=(ALLOCATOR._replace(retries=3, out_of_memory=1),), now=NOW,
    )  # fmt: skip
    bad = {word.replace("\N{NARROW NO-BREAK SPACE}", " ") for word in
           re.findall(r'<span class="bad">([^<]*)</span>', html)}  # fmt: skip
    assert bad == {
        "88 °C", "slowed down by the hardware, too hot", "Xid errors: 79", "out of memory once",
    }  # fmt: skip
    assert "at its power limit" in html
    assert "cache emptied for want of memory 3 times" in html
    assert "idle" not in html


def test_a_driver_that_does_not_answer() -> None:
    """Is said, with the time since; what torch knows is still there."""
    _, text = gpu_page(memory=(ALLOCATOR,), stalled=True, timestamp=NOW - 200)
    assert "The driver does not answer . Its last answer came 3 min ago." in text
    assert "allocated 40.0" in text
    _, text = gpu_page(stalled=True, timestamp=None)
    assert "The driver does not answer" in text


def test_a_driver_that_cannot_be_asked() -> None:
    """Is said with the reason, where torch uses a GPU and its numbers are missed."""
    failures = {"library_missing": 1.0, "gpu_lost": 0.0}
    _, text = gpu_page(memory=(ALLOCATOR,), failures=failures, timestamp=None)
    assert "Nothing is known from the driver: library missing." in text
    assert "from the driver" not in gpu_page(H100, failures=failures)[1]


def test_a_lost_gpu_says_so() -> None:
    """One that fell off the bus."""
    lost = GpuReading(gpu="2", name="NVIDIA H100", lost=True)
    assert "lost: it does not answer any more" in gpu_page(lost)[1]
    assert "lost" not in gpu_page(H100)[1]


def test_old_readings_say_so() -> None:
    """Fresh ones need no date."""
    assert "The driver was read 2 min ago." in gpu_page(H100, timestamp=NOW - 130)[1]
    assert "read" not in gpu_page(H100, timestamp=NOW - 30)[1]


@pytest.mark.parametrize(
    "told", [{"name": "Stand-in GPU (no hardware)"}, {"driver_version": "stand-in"}]
)
def test_simulated_gpus_say_so(told: dict[str, str]) -> None:
    """Nobody takes the demo's numbers for a machine's."""
    said = "Simulated : no hardware behind these numbers."
    assert said in gpu_page(replace(H100, **told))[1]
    assert said not in gpu_page(H100)[1]


def test_everything_is_escaped() -> None:
    """Names from users cannot become markup, wherever they are shown."""
    evil = "<script>alert('x')</script>\"&"
    info = {"model": evil, "profile": evil}
    status = STATUS._replace(run=evil, failure=evil, state=evil, info=info)
    run = snapshot()
    assert run.signals is not None
    run = run._replace(
        signals=replace(run.signals, learning_rates={evil: 1.0, "other": 2.0}),
        anomalies=(AnomalyStatus(evil, True, True, 1, 1, 1.0, 1.0, 1.0),),
        recent=(Anomaly(evil, 1, NOW, 1.0, 1.0),),
        evaluations={evil: Evaluation(1, NOW, evil, 1.0)},
    )
    gpu = GpuReading(gpu=evil, name=evil, throttled={evil: 1.0}, xids={evil: 1.0})
    shown = Page(render(status, run, gpus=GpuReadings(gpus=(gpu,)), now=NOW))
    assert shown.all("script") == []
    assert shown.text.count("<script>") == 14 + 4


def test_nothing_comes_from_elsewhere() -> None:
    """The page loads nothing: no script, and no address but links and its own icon."""
    shown = page()
    assert shown.all("script") == []
    assert all((link["href"] or "").startswith("data:") for link in shown.all("link"))
    assert "url(" not in render(STATUS, snapshot())
    assert {a["href"] for a in shown.all("a")} >= {"/metrics", "/-/healthy"}


def test_accessible() -> None:
    """Drawings have a title and a description, table headers a scope, the page a language."""
    shown = page(of=snapshot(recent=(Anomaly("restart", 1, NOW, 1.0, 1.0),)))
    assert shown.all("html") == [{"lang": "en"}]
    described = {
        name for svg in shown.all("svg") for name in (svg.get("aria-labelledby") or "").split()
    }
    ids = {tag.get("id") for kind in ("title", "desc") for tag in shown.all(kind)}
    assert described == {"loss-title", "loss-desc", "gradients-title", "gradients-desc"} <= ids
    assert len(shown.all("table")) == 2
    assert all(th.get("scope") for th in shown.all("th"))
    assert any(meta.get("name") == "viewport" for meta in shown.all("meta"))


@pytest.mark.parametrize(
    "values",
    [
        [], [1.0], [None, None], [1.0, None], [0.0, 0.0], [5.0, 5.0], [-3.0, 2.0], [1e300, 1e-300],
        [-1e308, 1e308], [1e-320, 1e-319], [0.0, 1e9], [1e15, 1e15 + 1], [3.0, None, 2.0],
    ],
)  # fmt: skip
@pytest.mark.parametrize("log_scale", [True, False])
def test_curves_of_odd_values(values: list[float | None], log_scale: bool) -> None:
    """Whatever the values, the drawing is sound and its numbers are numbers."""
    drawn = draw(Curve("k", "T", list(enumerate(values, 1)), [Mark(2, "m")], log_scale))
    Page(drawn)
    assert not re.search(r"(nan|inf)(?!ite)", drawn)
    assert len(re.findall('class="grid"', drawn)) <= 7


@pytest.mark.parametrize(
    ("points", "not_finite", "why"),
    [
        ([], False, "The curve begins with the second step."),
        ([(1, None)], False, "The curve begins with the second step."),
        ([(1, None), (2, None)], False, "No gradient norm was reported."),
        ([(1, None), (2, None)], True, "No gradient norm was finite."),
        ([(1, None), (2, 1.0)], True, "The curve begins with the second value."),
        (
            [(1, 0.0), (2, 0.0)],
            False,
            "Fewer than two values of the gradient norm are above 0, as a log scale needs.",
        ),
    ],
)
def test_no_curve_says_why(
    points: list[tuple[int, float | None]], not_finite: bool, why: str
) -> None:
    """Whether it is too early, or whether there is nothing to draw."""
    curve = Curve("k", "Gradient norm", points, log_scale=True, not_finite=not_finite)

    assert why in draw(curve)


def test_norms_that_are_not_finite_are_no_missing_ones() -> None:
    """The totals know, as the points do not."""

    def shown(totals: Totals) -> str:
        run, history = snapshot(), CurveHistory()
        history.add_all([StepSignals(step, NOW, loss=1.0) for step in (1, 2)])
        return page(of=run._replace(history=history, totals=totals)).text

    assert "No gradient norm was reported." in shown(Totals())
    assert "No gradient norm was finite." in shown(Totals(non_finite_grad_norms=2.0))


@pytest.mark.parametrize(
    ("begin", "every", "rows", "shown"),
    [
        (0, 1, 600, "0"),
        (1, 1, 2_000, "1"),
        (0, 50, 600, "0"),
        (7, 1, 3, "7"),
        (900, 1, 1_000, "900"),
    ],
)
def test_the_axis_begins_at_the_first_step(begin: int, every: int, rows: int, shown: str) -> None:
    """Also when the history has long gathered it with others, as one point."""
    history = CurveHistory()
    steps = [StepSignals(begin + every * row, NOW, loss=1.0) for row in range(rows)]
    history.add_all(steps)

    text = page(of=snapshot()._replace(history=history, signals=steps[-1])).text

    assert f" step {shown} " in text
    assert f" step {count(steps[-1].step)} " in text


def test_a_gap_breaks_the_line() -> None:
    """Steps without a value, and steps that go back, are not joined by a line."""
    points = [(1, 1.0), (2, 2.0), (3, None), (4, 2.0), (2, 1.0), (5, 3.0)]
    path = re.search(r' d="([^"]*)"', draw(Curve("k", "T", points)))
    assert path is not None
    assert path[1].count("M") == 3


def test_a_steep_positive_curve_gets_a_log_scale() -> None:
    """One spike does not flatten a whole curve; a curve of either sign has no logarithm."""
    spiky = [(step, 2.0) for step in range(50)] + [(50, 500.0)]
    assert "log scale" in draw(Curve("k", "T", spiky))
    assert "log scale" not in draw(Curve("k", "T", [(0, -1.0), *spiky[1:]]))


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (number(None), "–"), (number(nan), "NaN"), (number(inf), "+Inf"), (number(-inf), "−Inf"),
        (number(0.000312345), "0.0003123"), (number(3e-5), "3e−5"),
        (number(-1234.5), "−1,234"), (number(8369.1), "8,369"),
        (number(123456.7), "123,457"), (number(1e12), "1e12"), (count(None), "–"),
        (count(9_999_999), "9,999,999"), (count(12_345_678), "12.3 M"), (share(1, 3), "33.3 %"),
        (share(99_999, 100_000), "99.9 %"), (share(5, 5), "100.0 %"), (duration(None), "–"),
        (duration(inf), "–"), (duration(0.0123), "12.3 ms"), (duration(12.34), "12.3 s"),
        (duration(60), "1 min 0 s"), (duration(3 * 3600 + 125), "3 h 2 min"),
        (duration(2.5 * 86400), "2 d 12 h"), (ago(10, 5), "just now"), (ago(0, 7300), "2 h ago"),
    ],
)  # fmt: skip
def test_wording(shown: str, wanted: str) -> None:
    """Numbers and times read as a person would say them."""
    assert shown.replace("\N{NARROW NO-BREAK SPACE}", " ") == wanted


def test_a_report_on_a_nan_is_named() -> None:
    """With the command that explains it; the name of a folder is no markup."""
    note = ReportNote("loss", "loss NaN at step 7; likely cause: <b>", "/runs/<i>/r.json", True)
    status = STATUS._replace(report=note, reports=1)

    html = render(status, snapshot(), now=NOW)

    assert "loss NaN at step 7; likely cause: &lt;b&gt;" in html
    assert f"<code>{program()} explain &#x27;/runs/&lt;i&gt;/r.json&#x27;</code>" in html
    assert "report" not in render(STATUS, snapshot(), now=NOW).partition("<body>")[2]


def test_a_report_is_an_alarm() -> None:
    """Also when the NaN are over, but not for an overflow by which mixed precision finds its
    scale."""
    note = ReportNote("loss", "loss NaN at step 7", None, True)

    def shown(alarming: bool) -> str:
        told = STATUS._replace(report=note._replace(alarming=alarming), reports=1)
        return render(told, snapshot(), now=NOW)

    assert '<p class="report alarm">⚠ loss NaN at step 7' in shown(True)
    assert "it could not be written" in shown(True)
    assert 'class="report card"' in shown(False)


def test_the_run_as_a_whole_once_it_is_over() -> None:
    """A page that stays after the end says what the whole run was like, and not before."""
    spike = AnomalyStatus("loss_spike", True, False, 2, 2, NOW, 1.0, 1.0)
    seen = snapshot()._replace(anomalies=(spike,), best=Best(2.0, 2))
    over = STATUS._replace(state="completed")

    text = Page(render(over, seen, now=NOW, overhead={"step": 0.02})).text

    assert "The run as a whole" in text
    assert "2 at the end, 2.5 on average (EMA), 2 at best, step 2" in text
    assert "2.25 on wiki" in text
    assert "loss spike 2" in text  # as the tables below call it
    assert "20\N{NARROW NO-BREAK SPACE}ms" in text
    assert "The run as a whole" not in Page(render(STATUS, seen, now=NOW)).text


def test_the_run_as_a_whole_is_as_it_was_told() -> None:
    """To log and file: what our own work took goes on a little after that. It is also there for a
    run that crashed before its first step, which has nothing else to show."""
    told = (("error", "no such file"), ("anomalies", "loss_spike 2"), ("this exporter", "101 ms"))
    over = STATUS._replace(state="crashed", summary=told)

    for of in (snapshot(), snapshot(losses=())):
        text = Page(render(over, of, now=NOW, overhead={"step": 0.105})).text
        assert "101 ms" in text
        assert "105" not in text
        assert "no such file" in text
        assert "loss spike 2" in text


def test_what_a_run_as_a_whole_says_is_escaped() -> None:
    """A data set may be called like HTML."""
    seen = snapshot()._replace(evaluations={"<b>": Evaluation(2, NOW, "<b>", 1.0)})

    html = render(STATUS._replace(state="stopped"), seen, now=NOW)

    assert "1 on &lt;b&gt;" in html
    assert "1 on <b>" not in html
