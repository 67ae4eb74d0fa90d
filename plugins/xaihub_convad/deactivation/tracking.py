"""Tracking of the image's positions through the forward pass of any network.

Every torch function that the network calls, in a module or not, passes through `Tracker`, which knows for each tensor
which axes are positions of the image, and which positions are active. Functions that work position by position run
unchanged. A function that mixes positions gets a gated input, so that nothing flows from an inactive position to any
other. A function without a rule is refused by name.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xaihub import ExplainerRefused
from xaihub_convad.deactivation.live_map import Layerwise, Live

# Takes a call instead of the function; returns its marked result.
Rule = Callable[["Call"], Any]


@dataclass(frozen=True, slots=True)
class Places:
    """Which axes of a tensor are positions of the image."""

    dims: tuple[int, ...] = ()  # negative axes: (rows, columns), one axis of row-major cells, or none
    live: Live | None = None  # which positions are active; None without positions
    gated: float | None = None  # the value in inactive positions, 0 or minus infinity; None if unknown
    images: bool = True  # whether the first axis is the batch of images; False for tensors that do not depend on them

    @property
    def on(self) -> Live:
        """The live map of a tensor with positions."""
        assert self.live is not None  # noqa: S101
        return self.live


WHOLE = Places()  # one vector per image, without positions
CONSTANT = Places(images=False)

# Methods that do not read a tensor's values.
_METADATA = (
    "size dim stride numel nelement ndimension is_contiguous is_floating_point is_complex element_size get_device"
    " storage_offset data_ptr is_inference __len__ register_hook retain_grad has_names"
)
METADATA = frozenset(_METADATA.split())


class Tracker(TorchFunctionMode):
    """Gates every mixing of positions in its context, in this thread only; the network itself is not modified."""

    def __init__(
        self,
        network: nn.Module,
        propagation: Layerwise,
        rules: Mapping[str, Rule],
        *,
        pooling: Literal["plain", "live"],
        neighbours: bool,
    ) -> None:
        """Store the options; `propagation` holds the batch's masks, `rules` the rule of each function."""
        super().__init__()
        self.rules = rules
        self.network = network
        self.propagation = propagation
        self.live_pooling = pooling == "live"
        self.neighbours = neighbours
        self.rows = len(propagation.image.mask)
        self._known: dict[int, tuple[weakref.ref[Tensor], Places]] = {}
        self._own: set[int] | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:  # noqa: D105
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # an attribute of a tensor, such as its shape
            value = func(*args, **kwargs)
            return self._attribute(func, args[0], value) if isinstance(value, Tensor) else value
        if name in METADATA:
            return func(*args, **kwargs)
        seen = [self.of(tensor) for tensor in tensors((args, kwargs))]
        if not any(places.dims for places in seen):
            return self.mark(func(*args, **kwargs), WHOLE if any(p.images for p in seen) else CONSTANT)
        rule = self.rules.get(name.strip("_"))
        if rule is None or "out" in kwargs:
            self.refuse(name, "has no rule for inactive positions")
        return rule(Call(self, func, args, kwargs))

    def start(self, inputs: Tensor) -> Tensor:
        """Return a copy of (N, C, H, W) inputs with masked pixels at 0, and track it from here on."""
        live = self.propagation.image
        self.mark((live.mask, inputs), WHOLE)  # nothing about it is inactive yet
        blanked = torch.where(live.mask > 0, inputs, torch.zeros((), dtype=inputs.dtype, device=inputs.device))
        blanked = blanked.contiguous(memory_format=torch.channels_last) if _is_nhwc(inputs) else blanked
        return self._marked(blanked, Places((-2, -1), live, 0.0))

    def finish(self, outputs: Any) -> Any:
        """Return the network's outputs; refuse if they still have positions or their history is unknown."""
        for tensor in tensors(outputs):
            if self.of(tensor).dims:
                raise ExplainerRefused(
                    "the network's output is a map, not class scores, so deactivation is not supported"
                )
        return outputs

    def of(self, tensor: Tensor) -> Places:
        """Return what is known about a tensor."""
        entry = self._known.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        if isinstance(tensor, nn.Parameter) or tensor.ndim < 2 or len(tensor) != self.rows:
            return CONSTANT
        if self._own is None:
            self._own = {id(own) for own in (*self.network.parameters(), *self.network.buffers())}
        if id(tensor) not in self._own:
            # Compiled code cannot be inspected; a guess could let masked pixels through.
            self.refuse("a tensor", "comes from code that cannot be tracked (torch.jit or a custom function)")
        return CONSTANT

    def mark(self, result: Any, places: Places) -> Any:
        """Record what is known about the tensors in a result, and return the result."""
        for tensor in tensors(result):
            if places.dims:
                self._check(tensor, places)
            self._known[id(tensor)] = (weakref.ref(tensor), places)
        return result

    def places(self, result: Tensor, dims: tuple[int, ...], live: Live, gated: float | None = None) -> Tensor:
        """Mark a result that has positions; a grid of a single position is the whole image, and always active."""
        return self._marked(result, WHOLE if live.grid == (1, 1) else Places(dims, live, gated))

    def gate(self, tensor: Tensor) -> Tensor:
        """Return the tensor with 0 in every inactive position."""
        places = self.of(tensor)
        if not places.dims or places.gated == 0:
            return tensor
        if places.gated is not None:  # minus infinity times 0 is not a number
            gated = torch.where(places.on.factor(tensor, places.dims) > 0, tensor, torch.zeros_like(tensor))
        elif torch.is_grad_enabled() or _overlaps(tensor):
            gated = tensor * places.on.factor(tensor, places.dims)
        else:
            # Inactive positions are read as 0 everywhere, so the tensor may be changed in place, once, without a copy.
            gated = tensor.mul_(places.on.factor(tensor, places.dims))
        return self._marked(gated, replace(places, gated=0.0))

    def walled(self, tensor: Tensor) -> Tensor:
        """Return a copy with minus infinity in every inactive position, so that no maximum is taken there."""
        places = self.of(tensor)
        if not places.dims or places.gated == -torch.inf:
            return tensor
        return self._marked(tensor + places.on.barrier(tensor, places.dims), replace(places, gated=-torch.inf))

    def refuse(self, function: str, reason: str) -> NoReturn:
        """Raise ExplainerRefused, naming the layer that is running."""
        raise ExplainerRefused(
            f"activations cannot be switched off in {self._running()}: {function!r} {reason}",
            hint="use another baseline for this model",
        )

    def _marked(self, tensor: Tensor, places: Places) -> Tensor:
        self.mark(tensor, places)
        return tensor

    def _attribute(self, func: Any, source: Tensor, value: Tensor) -> Tensor:
        places = self.of(source)
        name = getattr(func.__self__, "__name__", "")
        if places.dims and name not in ("data", "grad"):
            self.refuse(f"Tensor.{name}", "has no rule for inactive positions")
        return self._marked(value, replace(places, gated=None))

    def _check(self, tensor: Tensor, places: Places) -> None:
        rows, columns = places.on.grid
        sides = [rows * columns] if len(places.dims) == 1 else [rows, columns]
        known = all(
            -axis < tensor.ndim and tensor.shape[axis] == side for axis, side in zip(places.dims, sides, strict=True)
        )
        if not known or len(tensor) != self.rows:
            self.refuse("a function", f"returned {tuple(tensor.shape)}, in which the image's positions are lost")

    def _running(self) -> str:
        names = {id(module): name for name, module in self.network.named_modules() if name}
        frame = sys._getframe()
        while frame is not None:
            own = frame.f_locals.get("self")
            if isinstance(own, nn.Module) and id(own) in names:
                return f"layer {names[id(own)]!r} ({type(own).__name__})"
            frame = frame.f_back  # type: ignore[assignment]
        return f"the network ({type(self.network).__name__})"


class Call:
    """One call of a torch function with at least one tensor that has positions; `t` is the tracker."""

    def __init__(self, tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.t, self.func, self.args, self.kwargs = tracker, func, args, kwargs
        self.input: Tensor = self.argument(0, "input")  # the first tensor, and what is known about it
        self.places = next((tracker.of(tensor) for tensor in tensors(self.input)), CONSTANT)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that may be given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor among the arguments."""
        return tensors((self.args, self.kwargs))

    def map(self) -> Places:
        """Return the places of the input, which must be (N, C, h, w)."""
        if self.places.dims != (-2, -1) or self.input.ndim != 4:
            self.refuse("does not receive a map with rows and columns last")
        return self.places

    def gated(self) -> Tensor:
        """Return the input with 0 in every inactive position."""
        return self.t.gate(self.input)

    def walled(self) -> Tensor:
        """Return the input with minus infinity in every inactive position."""
        return self.t.walled(self.input)

    def on(self, x: Tensor) -> Any:
        """Call the function with `x` instead of its input."""
        others = {name: value for name, value in self.kwargs.items() if name != "input"}
        return self.func(x, *self.args[1:], **others)

    def run(self, places: Places) -> Any:
        """Call the function unchanged and mark its result."""
        return self.t.mark(self.func(*self.args, **self.kwargs), places)

    def refuse(self, reason: str) -> NoReturn:
        """Raise ExplainerRefused, naming the function."""
        self.t.refuse(self.func.__name__, reason)


def negative(axis: int, ndim: int) -> int:
    """Return an axis counted from the end."""
    return axis if axis < 0 else axis - ndim


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(tuple(value.values()))


def _is_nhwc(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _overlaps(tensor: Tensor) -> bool:
    return any(stride == 0 and side > 1 for stride, side in zip(tensor.stride(), tensor.shape, strict=True))
