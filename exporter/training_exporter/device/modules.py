# SPDX-License-Identifier: Apache-2.0
"""The forward-hook mode: the first module whose output is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from training_exporter.device.counting import can_be_non_finite, count_non_finite, values_here
from training_exporter.device.parcel import OpenBackend, Parcel, open_backend
from training_exporter.device.rows import Backend
from training_exporter.forensics.report import FIRST_MODULE, Gap, ModuleFinding

MOST_CALLS: Final = 20_000
"""Calls of modules that are looked at; the first bad one is hardly later."""

_DEEPEST: Final = 6
_MOST_TENSORS: Final = 256
_NUMBERS: Final = 3  # of a call: NaN and Inf in what came out, both together in what went in


class _Call(NamedTuple):
    order: int
    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str


class FirstBadModule:
    """`with FirstBadModule(model, step=n) as watch:` around a forward pass, then `watch.found()`.

    Each module's output is looked at when the module is done, those inside a module before it, and
    the first that holds NaN or Inf is the culprit, or stands at its place: an operation between
    modules is found at the module around it. On the CPU it is known at once; elsewhere the counts
    of all modules travel together at the end, and nobody waits. It costs about as much as the
    forward pass itself, so it is for a run that is broken already, or on request.

    What torch.compile has compiled shows no modules to hooks, and is left out, which `gap` says.
    With `force_eager` it runs uncompiled meanwhile, which is slower, takes more memory and may give
    other last bits.

    Outputs may be tensors, tuples, lists, mappings and ModelOutputs. The hooks change nothing and
    are always removed.

    Args:
        model: its modules are watched, itself included.
        step: the step that the forward pass belongs to.
        force_eager: run compiled modules uncompiled, from torch 2.6 on.
        guard: makes the error boundary in which each hook runs, since it runs in the user's forward
            pass. After a first error the hooks do nothing more.
        open_backend: how to send from a device.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        step: int,
        force_eager: bool = False,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
        open_backend: OpenBackend = open_backend,
    ) -> None:
        self._model = model
        self._step = step
        self._force_eager = force_eager and hasattr(torch.compiler, "set_stance")
        self._guard = guard
        self._open_backend = open_backend
        self._backends: dict[torch.device, Backend | None] = {}
        self._stack = ExitStack()
        self._left_out = 0
        self._part_called = next(model.children(), None) is None
        self._stopped = False
        self._calls: dict[torch.device, list[_Call]] = {}
        self._numbers: dict[torch.device, list[torch.Tensor]] = {}
        self._parcels: list[tuple[list[_Call], Parcel]] = []
        self._order = 0
        self._found: ModuleFinding | None = None

    def __enter__(self) -> FirstBadModule:
        with ExitStack() as stack:
            if self._force_eager:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for name, module in self._watched(self._model, ""):
                handle = module.register_forward_hook(self._hook(name), with_kwargs=True)
                stack.callback(handle.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        if error is None:  # else the device may be lost, and nothing is asked of it
            for device, numbers in self._numbers.items():
                parcel = Parcel(numbers, self._backends[device])
                self._parcels.append((self._calls[device], parcel))
        self._numbers = {}

    def arrived(self) -> bool:
        """Whether the result is known. Never waits."""
        return all(parcel.arrived() for _, parcel in self._parcels)

    def wait(self) -> None:
        """Wait until it is."""
        for _, parcel in self._parcels:
            parcel.wait()

    def found(self) -> ModuleFinding | None:
        """The first module whose output was not finite, None when there was none. Valid only once
        it has arrived."""
        if self._found is not None:
            return self._found
        bad = [found for calls, parcel in self._parcels for found in _bad(calls, parcel.numbers())]
        if not bad:
            return None
        call, nan, inf, into = min(bad)
        return self._finding(call, nan, inf, into)

    @property
    def gap(self) -> Gap | None:
        """What the watch could not see, None when it saw everything."""
        if self._stopped and self._found is None:
            return Gap(FIRST_MODULE, "watching was given up after an error, or too many calls")
        if not self._part_called:
            return Gap(
                FIRST_MODULE, "no part of the model was called by itself, as when it is compiled"
            )
        if self._left_out:
            return Gap(
                FIRST_MODULE,
                f"{self._left_out} compiled modules were not looked into; force_eager does",
            )
        return None

    def _watched(self, module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        """The modules that hooks can see, each once, by their path without torch.compile's part."""
        seen: set[nn.Module] = set()
        waiting = [(name, module)]
        while waiting:
            name, module = waiting.pop()
            if module in seen or isinstance(module, torch.jit.ScriptModule):
                continue
            seen.add(module)
            if _is_compiled(module) and not self._force_eager:
                self._left_out += 1
                continue
            yield name, module
            for part, child in module.named_children():
                path = name if part == "_orig_mod" else f"{name}.{part}" if name else part
                waiting.append((path, child))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._stopped:
                return
            with self._guard():
                self._stopped = True  # stays so after an error
                with torch.no_grad():
                    self._stopped = self._look(name, module, (args, kwargs), output)

        # Else it would become a part of what dynamo traces, where a list that grows recompiles.
        disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
        return disabled

    def _look(self, name: str, module: nn.Module, into: Any, output: Any) -> bool:
        """Look at a call of a module; whether to stop."""
        if name:
            self._part_called = True
        elif not self._part_called:  # the whole is no answer to where in it something broke
            return False
        for tensor in _tensors(output):
            values = values_here(tensor)
            if not can_be_non_finite(values) or values.is_meta:
                continue
            self._order += 1
            shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
            call = _Call(self._order, name, type(module).__name__, shape, dtype)
            if self._count(call, values, into) or self._order >= MOST_CALLS:
                return True
        return False

    def _count(self, call: _Call, values: torch.Tensor, into: Any) -> bool:
        """Count in an output, and in what went in; whether it is known to be the culprit."""
        nan, inf = count_non_finite(values)
        if self._backend(values.device) is not None:
            self._calls.setdefault(values.device, []).append(call)
            numbers = self._numbers.setdefault(values.device, [])
            numbers += [nan, inf, _bad_in(into, values.device)]
            return False
        return self._decide(call, nan, inf, into)

    def _backend(self, device: torch.device) -> Backend | None:
        if device not in self._backends:
            self._backends[device] = self._open_backend(device)
        return self._backends[device]

    def _decide(self, call: _Call, nan: torch.Tensor, inf: torch.Tensor, into: Any) -> bool:
        numbers = Parcel([nan, inf], None).numbers()
        if not any(numbers):
            return False
        went_in = Parcel([_bad_in(into, nan.device)], None).numbers()
        self._found = self._finding(call, *numbers, *went_in)
        return True

    def _finding(self, call: _Call, nan: float, inf: float, into: float) -> ModuleFinding:
        return ModuleFinding(
            self._step, call.name, call.kind, call.shape, call.dtype, int(nan), int(inf), not into
        )


def _bad(calls: list[_Call], numbers: list[float]) -> Iterator[tuple[_Call, float, float, float]]:
    for call, nan, inf, into in zip(
        calls, numbers[::_NUMBERS], numbers[1::_NUMBERS], numbers[2::_NUMBERS], strict=True
    ):
        if nan or inf:
            yield call, nan, inf, into


def _bad_in(values: Any, device: torch.device) -> torch.Tensor:
    """Number of non-finite elements in the tensors on a device among a module's arguments."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in _tensors(values):
        here = values_here(tensor)
        if here.device == device and can_be_non_finite(here):
            nan, inf = count_non_finite(here)
            total += nan + inf
    return total


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _gather(value, found, _DEEPEST)
    return found


def _gather(value: Any, found: list[torch.Tensor], depth: int) -> None:
    if len(found) >= _MOST_TENSORS:
        return
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif depth and isinstance(value, Mapping):
        for one in value.values():
            _gather(one, found, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for one in value:
            _gather(one, found, depth - 1)
    elif depth and hasattr(value, "__dataclass_fields__"):
        _gather(vars(value), found, depth - 1)


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has wrapped it, or `module.compile()` has compiled it in place."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
