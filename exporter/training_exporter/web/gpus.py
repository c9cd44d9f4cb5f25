# SPDX-License-Identifier: Apache-2.0
"""The GPUs of the process on the landing page: what the driver and torch's allocator said last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from training_exporter.gpu.readings import AllocatorReading, GpuReading, GpuReadings
from training_exporter.wording import ago, count

STALE_SECONDS = 60.0
"""Readings of the driver that are older say so."""

_SIMULATED = "stand-in"
_THIN = "\N{NARROW NO-BREAK SPACE}"
_ALLOCATOR_PARTS = (
    ("allocated", "live tensors"),
    ("reserved", "these, and the allocator's cache for later ones"),
)
_DRIVER_PART = ("used", "all processes together, CUDA contexts included")
_PEAK = ("peak", "most that live tensors held")
_IDLE = "gpu_idle"
_USUAL = {
    "sw_power_cap": "at its power limit",
    "applications_clocks": "clocks set by hand",
    "display_clocks": "clocks set for a display",
    "sync_boost": "in step with slower GPUs",
}
_ALARMING = {
    "hw_slowdown": "slowed down by the hardware",
    "hw_thermal": "slowed down by the hardware, too hot",
    "sw_thermal": "slowed down by the driver, too hot",
    "hw_power_brake": "slowed down by the power supply",
}

Pair = tuple[GpuReading | None, AllocatorReading | None]


def gpu_section(readings: GpuReadings, memory: tuple[AllocatorReading, ...], now: float) -> str:
    """A card for each GPU; nothing where there is none.

    Args:
        readings: what the driver says.
        memory: what torch's allocator says. A device that no GPU of the driver's has as its
            `cuda_device` gets a card of its own.
        now: Unix time in seconds.
    """
    pairs = _pairs(readings, memory)
    if not pairs and not readings.stalled:
        return ""
    notes = "".join(f'<p class="gpu-note">{note}</p>' for note in _notes(readings, now))
    names = {gpu.name for gpu in readings.gpus}
    alike = escape(names.pop()) if len(names) == 1 else ""  # then said once, for all of them
    cards = "".join(_card(gpu, allocator, named=not alike) for gpu, allocator in pairs)
    return (
        f'<section class="card gpus"><h2>{"GPUs" if len(pairs) > 1 else "GPU"} '
        f'<small>{alike}</small></h2>{notes}{_legend(pairs)}<div class="gpu-cards">{cards}</div>'
        "</section>"
    )


def _pairs(readings: GpuReadings, memory: tuple[AllocatorReading, ...]) -> list[Pair]:
    """GPUs with what the allocator holds there, matched by the number that CUDA gives them."""
    rest: dict[int | None, AllocatorReading] = {reading.device: reading for reading in memory}
    known: list[Pair] = [(gpu, rest.pop(gpu.cuda_device, None)) for gpu in readings.gpus]
    return known + [(None, reading) for reading in sorted(rest.values())]


def _notes(readings: GpuReadings, now: float) -> Iterator[str]:
    """What must be known before a number is believed."""
    if any(_SIMULATED in (gpu.driver_version, gpu.name[:8].lower()) for gpu in readings.gpus):
        yield "<strong>Simulated</strong>: no hardware behind these numbers."
    age = "" if readings.timestamp is None else f"Its last answer came {_ago(readings, now)}."
    if readings.stalled:
        yield f'<strong class="bad">The driver does not answer</strong>. {age}'
    elif readings.timestamp is not None and now - readings.timestamp > STALE_SECONDS:
        yield f"The driver was read {_ago(readings, now)}."
    failures = [reason.replace("_", " ") for reason, times in readings.failures.items() if times]
    if failures and not readings.gpus and not readings.stalled:
        yield f"Nothing is known from the driver: {escape(', '.join(failures))}."


def _ago(readings: GpuReadings, now: float) -> str:
    return ago(now if readings.timestamp is None else readings.timestamp, now)


def _legend(pairs: Sequence[Pair]) -> str:
    """What the parts of the bars mean, once for all of them, each part as far as it is known."""
    parts: list[tuple[str, str]] = []
    if any(allocator for _, allocator in pairs):
        parts += _ALLOCATOR_PARTS
    if any(gpu and gpu.memory_used_bytes is not None for gpu, _ in pairs):
        parts.append(_DRIVER_PART)
    if any(allocator and allocator.allocated_peak_bytes for _, allocator in pairs):
        parts.append(_PEAK)
    keys = "".join(
        f'<span><i class="key {word}"></i><b>{word}</b> {meaning}</span>' for word, meaning in parts
    )
    return f'<p class="legend">{keys}</p>' if keys else ""


def _card(gpu: GpuReading | None, allocator: AllocatorReading | None, *, named: bool) -> str:
    facts = [*(_facts(gpu) if gpu else ()), *_trouble(gpu, allocator)]
    name = f"<small>{escape(gpu.name)}</small>" if gpu and named else ""
    return (
        f"<article>{_title(gpu, allocator)}{name}{_memory(gpu, allocator)}"
        f'<p class="gpu-facts">{"".join(facts)}</p></article>'
    )


def _title(gpu: GpuReading | None, allocator: AllocatorReading | None) -> str:
    device = allocator.device if allocator else gpu.cuda_device if gpu else None
    cuda = "" if device is None else f"cuda:{device}"
    if gpu is None:
        return f"<h3><span>{cuda}</span></h3>"
    busy = ""
    if gpu.utilization is not None:
        share = f"{100 * gpu.utilization:.0f}{_THIN}%"
        busy = f'<span class="busy">{share} <small>busy</small></span>'
    return f"<h3><span>GPU {escape(gpu.gpu)} <small>{cuda}</small></span>{busy}</h3>"


def _memory(gpu: GpuReading | None, allocator: AllocatorReading | None) -> str:
    """The bar, from live tensors up to all there is, and its numbers."""
    of_gpu, of_torch = gpu or GpuReading(gpu=""), allocator or AllocatorReading(-1)
    total = of_gpu.memory_total_bytes or of_torch.total_bytes
    if not total:
        return ""
    sizes = {
        "allocated": of_torch.allocated_bytes,
        "peak": of_torch.allocated_peak_bytes,
        "reserved": of_torch.reserved_bytes,
        "used": of_gpu.memory_used_bytes,
    }
    known = [f"{word} {_gib(size)}" for word, size in sizes.items() if size is not None]
    known.append(f"total {_gib(total)}")
    numbers = "".join(f"<span>{one}</span>" for one in known)
    return (
        f'<div class="memory" role="img" aria-label="memory: {", ".join(known)}">'
        f'{_bar(sizes, total)}</div><p class="gpu-numbers">{numbers}</p>'
    )


def _bar(sizes: dict[str, float | None], total: float) -> str:
    """Each part from the end of the one before it. The driver was asked some seconds before the
    allocator, so that a part can be smaller than what it contains: it is not drawn then."""
    drawn, parts = 0.0, ""
    for word in ("allocated", "reserved", "used"):
        end = min(sizes[word] or 0.0, total)
        width = max(0.0, end - drawn)
        parts += f'<i class="{word}" style="width:{100 * width / total:.2f}%"></i>'
        drawn += width
    peak = sizes["peak"]
    if peak:
        parts += f'<b class="peak" style="left:{100 * min(1.0, peak / total):.2f}%"></b>'
    return parts


def _facts(gpu: GpuReading) -> Iterator[str]:
    if gpu.temperature_celsius is not None:
        hot = gpu.slowdown_celsius is not None and gpu.temperature_celsius >= gpu.slowdown_celsius
        yield _fact(f"{gpu.temperature_celsius:.0f}{_THIN}°C", bad=hot)
    if gpu.power_watts is not None:
        limit = "" if gpu.power_limit_watts is None else f" of {gpu.power_limit_watts:.0f}"
        yield _fact(f"{gpu.power_watts:.0f}{limit}{_THIN}W")
    for reason, held_down in gpu.throttled.items():
        if held_down and reason != _IDLE:
            alarming = _ALARMING.get(reason)
            yield _fact(alarming or _USUAL.get(reason, reason), bad=alarming is not None)


def _trouble(gpu: GpuReading | None, allocator: AllocatorReading | None) -> Iterator[str]:
    if gpu and gpu.lost:
        yield _fact("lost: it does not answer any more", bad=True)
    codes = [code for code, times in gpu.xids.items() if times] if gpu else []
    if codes:
        yield _fact(f"Xid errors: {', '.join(codes)}", bad=True)
    if allocator and allocator.out_of_memory:
        yield _fact(f"out of memory {_times(allocator.out_of_memory)}", bad=True)
    if allocator and allocator.retries:
        yield _fact(f"cache emptied for want of memory {_times(allocator.retries)}")


def _fact(text: str, *, bad: bool = False) -> str:
    return f'<span class="bad">{escape(text)}</span>' if bad else f"<span>{escape(text)}</span>"


def _times(number_of: float) -> str:
    return "once" if number_of == 1 else f"{count(number_of)} times"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}{_THIN}GiB"
