# SPDX-License-Identifier: Apache-2.0
"""One layer pass beside what else goes over all parameters, and what it adds to training.

Goal: at most one `clip_grad_norm_` on a CPU; on CUDA at most 1.2 times what it takes to read the
gradients once at the bandwidth of a copy; below 1 % of the training at the default interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from benchmarks.report import Runner, often, print_ratios, repeated, side_by_side
from training_exporter.device.histograms import HistogramPass
from training_exporter.device.layers import FULL_EVERY, LayerPass
from training_exporter.device.magnitudes import MagnitudePass
from training_exporter.layers.readings import LayerReader

INTERVAL = 10
SHAPES = ((200, 1_000), (2_000, 1_000), (200, 100_000), (2_000, 10_000))[: often(4)]
CHUNK = 2**24  # elements of the formula's temporaries: 64 MiB in float32

Call = Callable[[], object]


def made_of(parameters: int, elements: int, device: str) -> nn.Module:
    """A model of blocks of ten parameters, with gradients."""
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ParameterDict() for _ in range(parameters // 10))
    for block in model.layers:
        for name in "abcdefghij":
            block[name] = nn.Parameter(torch.randn(elements, device=device))
            block[name].grad = torch.randn(elements, device=device)
    return model


def naive(model: nn.Module) -> Call:
    parameters = list(model.parameters())
    return lambda: [p.grad.norm().item() for p in parameters if p.grad is not None]


def as_composer_does(model: nn.Module) -> Call:
    """Its OptimizerMonitor, from its description: a norm per gradient, their squares added up, and
    a sync for each under a name that holds the parameter's."""
    named = list(model.named_parameters())

    def monitor() -> dict[str, float]:
        total, norms = torch.tensor(0.0), {}
        for name, parameter in named:
            norm = torch.linalg.vector_norm(parameter.grad)
            total = total + norm.cpu() ** 2
            norms[f"l2_norm/grad/{name}"] = norm
        values = {name: norm.item() for name, norm in norms.items()}
        return {**values, "l2_norm/grad/global": total.item() ** 0.5}

    return monitor


def clipping(model: nn.Module) -> Call:
    parameters = list(model.parameters())
    return lambda: nn.utils.clip_grad_norm_(parameters, 1e9)


def ours(model: nn.Module, **options: int) -> Call:
    """A pass as a training does it; by default the first of five reads more than the others."""
    layers, steps = LayerPass(model, **options), count()

    def one_pass() -> object:
        layers.before_clipping(next(steps))
        layers.after_step()
        return layers.collect()

    return one_pass


def magnitudes(model: nn.Module) -> Call:
    """The histogram of the gradients' values."""
    passes = MagnitudePass(model)

    def one_pass() -> object:
        passes.before_clipping()
        return passes.collect()

    return one_pass


def histograms(model: nn.Module) -> Call:
    """Those of each layer's gradients and weights that TensorBoard gets."""
    passes = HistogramPass(model)

    def one_pass() -> object:
        passes.before_clipping()
        return passes.collect()

    return one_pass


def with_add_histogram(model: nn.Module, writer: SummaryWriter) -> Call:
    """What one writes in a loop of one's own: a histogram of each gradient and each weight."""

    def one_pass() -> None:
        for name, parameter in model.named_parameters():
            writer.add_histogram(f"gradient/{name}", parameter.grad)
            writer.add_histogram(f"weight/{name}", parameter)

    return one_pass


def grouping(model: nn.Module) -> Call:
    layers, reader = LayerPass(model), LayerReader(grouping="block")
    layers.before_clipping(0)
    (norms,) = layers.collect(wait=True)
    return lambda: reader.read(norms)


def by_formula(model: nn.Module) -> Call:
    """The change of an AdamW step from its moments and the weights: what sampling spares."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    states = [optimizer.state[p] for p in parameters]

    @torch.no_grad()
    def norms() -> object:
        found: list[torch.Tensor] = []
        for part in chunks(len(parameters), parameters[0].numel()):
            root = torch._foreach_sqrt([states[at]["exp_avg_sq"] for at in part])
            torch._foreach_div_(root, (1 - 0.999) ** 0.5)
            torch._foreach_add_(root, 1e-8)
            step = torch._foreach_div([states[at]["exp_avg"] for at in part], root)
            torch._foreach_mul_(step, 1e-3 / (1 - 0.9))
            torch._foreach_add_(step, [parameters[at] for at in part], alpha=1e-3 * 0.01)
            found.extend(torch._foreach_norm(step))
        return torch.stack(found)

    return norms


def chunks(parameters: int, elements: int) -> Iterator[range]:
    at_once = max(1, CHUNK // elements)
    for start in range(0, parameters, at_once):
        yield range(start, min(start + at_once, parameters))


def on_cpu() -> None:
    for parameters, elements in SHAPES:
        model = made_of(parameters, elements, "cpu")
        candidates: dict[str, Runner] = {
            "clip_grad_norm_": repeated(clipping(model)),
            "gradients' norm().item() each": repeated(naive(model)),
            "as Composer does, gradients": repeated(as_composer_does(model)),
            "layer pass, as it is by default": repeated(ours(model)),
            "  gradients": repeated(ours(model, full_every=10**9)),
            "  gradients and weights": repeated(ours(model, full_every=1, sample=0)),
            "  gradients, weights and changes": repeated(ours(model, full_every=1)),
            "  changes by AdamW's formula instead, alone": repeated(by_formula(model)),
            "  to layers, on the host": repeated(grouping(model)),
            "histogram of the gradients' values": repeated(magnitudes(model)),
        }
        print(f"{parameters:,} parameters of {elements:,}:")
        times = side_by_side(candidates, rounds=15, calls=FULL_EVERY)
        print_ratios(times, "clip_grad_norm_")
    histograms_on_cpu()


def histograms_on_cpu() -> None:
    """By layer, as TensorBoard gets them from us and from its own writer."""
    own = "SummaryWriter.add_histogram of each"
    with TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        for parameters, elements in SHAPES:
            model = made_of(parameters, elements, "cpu")
            candidates = {
                own: repeated(with_add_histogram(model, writer)),
                "histograms by layer": repeated(histograms(model)),
            }
            print(f"{parameters:,} parameters of {elements:,}:")
            print_ratios(side_by_side(candidates, rounds=3, calls=1), own)


def small_training() -> tuple[nn.Module, Call, Call]:
    """A model, what does the backward pass, and what does clipping and step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        vocab_size=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, 256, (4, 64))

    def gradients() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return model, gradients, step


def in_training(steps: int) -> None:
    """The pass as it is in a training: caches are full of other things there."""
    model, gradients, step = small_training()
    layers = LayerPass(model)
    whole, passes = [], []
    for number in range(steps):
        began = perf_counter()
        gradients()
        before = perf_counter()
        layers.before_clipping(number)
        read = perf_counter()
        step()
        stepped = perf_counter()
        layers.after_step()
        layers.collect()
        ended = perf_counter()
        passes.append(read - before + ended - stepped)
        whole.append(ended - began - passes[-1])
    full, light = median(passes[::FULL_EVERY]), median(passes[1::FULL_EVERY])
    mean = (full + (FULL_EVERY - 1) * light) / FULL_EVERY
    print(
        f"training of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
        f"{median(whole) * 1e3:.1f} ms a step: a pass takes {light * 1e3:.2f} ms, a full one "
        f"{full * 1e3:.2f} ms; every {INTERVAL} steps that is {mean / median(whole) / INTERVAL:.2%}"
    )


def seconds_on_device(call: Call, calls: int = 20) -> float:
    """Device time per call, from one event to the next."""
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def on_cuda() -> None:
    source = torch.empty(2**28, device="cuda")  # 1 GiB
    copied = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / seconds_on_device(lambda: copied.copy_(source))
    print(f"{torch.cuda.get_device_name()}, copy at {bandwidth / 1e9:,.0f} GB/s")
    for parameters, elements in (*SHAPES, (200, 1_000_000)):
        model = made_of(parameters, elements, "cuda")
        reading = parameters * elements * 4 / bandwidth
        print(f"{parameters:,} parameters of {elements:,}:")
        times = {
            "reading the gradients once": reading,
            "clip_grad_norm_": seconds_on_device(clipping(model)),
            "gradients' norm().item() each": seconds_on_device(naive(model)),
            "layer pass, as it is by default": seconds_on_device(ours(model)),
            "  gradients": seconds_on_device(ours(model, full_every=10**9)),
            "  gradients, weights and changes": seconds_on_device(ours(model, full_every=1)),
            "histogram of the gradients' values": seconds_on_device(magnitudes(model)),
            "histograms by layer": seconds_on_device(histograms(model)),
        }
        print_ratios(times, "reading the gradients once")


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    on_cpu()
    in_training(often(80))
    if torch.cuda.is_available():
        on_cuda()
