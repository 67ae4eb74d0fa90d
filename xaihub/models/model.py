"""Models: a network with its preprocessing and classes, forward passes, counting and safe modification."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from xaihub.errors import ExplainerRefused, ModelError
from xaihub.models.checks import check_class_names, check_modules, check_rows
from xaihub.models.containment import Guard
from xaihub.models.executor import Executor
from xaihub.models.hashing import hash_state, sha256_of
from xaihub.models.headed import Columns, Headed, RowsHead, Signed, without_head
from xaihub.models.layer import Layer
from xaihub.models.network import hookable, prepared, to_order
from xaihub.models.outputs import HOW, Outputs
from xaihub.models.preprocessing import Geometry, Preprocessing
from xaihub.models.sharing import eager, locked, locks_of
from xaihub.models.structure import Hints, Structure, trace
from xaihub.params import Parametrised
from xaihub.randomness import exclusive
from xaihub.records import canonical
from xaihub.specs import ModelCard

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


@dataclass(kw_only=True)
class Runtime:
    """Settings of forward passes that do not change their results.

    Attributes:
        batch_size: Rows per forward pass, or None to choose by device and memory.
        memory_budget: Memory limit of one forward pass in bytes, or None to choose by device.
        autocast: Run in mixed precision on a GPU.
        progress: Called as `progress(done, total)` while masks are evaluated.
    """

    batch_size: int | None = None
    memory_budget: int | None = None
    autocast: bool = False
    progress: Callable[[int, int], None] | None = None


@dataclass
class Counts:
    """The numbers of forward and backward passes through the network; each row of a batch is one pass."""

    forward_passes: int = 0
    backward_passes: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the sums."""
        return Counts(self.forward_passes + other.forward_passes, self.backward_passes + other.backward_passes)

    def __sub__(self, other: Counts) -> Counts:
        """Return the differences."""
        return Counts(self.forward_passes - other.forward_passes, self.backward_passes - other.backward_passes)


class Model:
    """A network with its preprocessing and class names; callable on (B, C, H, W), returns (B, K) float32 scores.

    Several threads may use one model: each call holds the network's lock, and so does an explanation or a measurement
    as a whole. Calls of `module` itself from another thread are not protected.

    Attributes:
        module: The network, in evaluation mode, on `device`.
        name: The name under which it was requested.
        preprocessing: Its own scaling, cropping and normalisation.
        classes: Class names by index; empty if unknown. Binary outputs have two: not the class, and the class.
        outputs: The meaning of the scores; those of binary outputs are minus the logit, and the logit.
        card: The card from which it was built.
        runtime: Settings of the forward passes.
        masked_rows: Masked images evaluated so far.
    """

    masked_rows = 0
    _executing = False

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        preprocessing: Preprocessing,
        classes: Sequence[str] = (),
        outputs: str | Outputs | None = None,
        hints: Hints | None = None,
        card: ModelCard | None = None,
        device: str | torch.device = "cpu",
        runtime: Runtime | None = None,
    ) -> None:
        """Move `module` to `device`, in evaluation mode and channels-last memory order.

        `outputs` declares what the network returns, see `Outputs.parse`; by default, logits of two or more classes.

        Raises:
            ModelError: The network cannot be moved or switched to evaluation mode, or rows of a batch would interact.
            ParameterError: `outputs` is not a kind of outputs.
        """
        self.device = torch.device(device)
        # Channels-last is the faster layout for convolutions on a CPU and, with autocast, on a GPU.
        self._order = torch.channels_last
        self.module: Any = prepared(module, self.device, self._order, name=name)
        check_modules(self.module, name=name)
        self.name = name
        self.preprocessing = preprocessing
        self.classes = tuple(classes)
        self.outputs, self._declared = Outputs(), False
        if outputs is not None:
            self._declare(Outputs.parse(outputs))
        self.card = card or ModelCard(name=name)
        self.runtime = runtime or Runtime()
        # Removal operators of plugins, by name; each is imported when it is called. Filled by the hub.
        self.baselines: Mapping[str, Callable[[], Callable[..., Any]]] = {}
        # How the hub loaded it, as keyword arguments and JSON types; None if it cannot be loaded again.
        self.loaded: dict[str, Any] | None = None
        self._hints = hints or Hints()
        self._hashed: tuple[list[tuple[int, int]], str] | None = None
        self._checked_rows = False
        self._locks, self._guard, self._executor = locks_of(self.module), Guard(), Executor()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the locks, the guard and the executor, so that a model can be copied."""
        self._guard.check()
        own = ("_locks", "_guard", "_executor")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, with locks and a guard of its own."""
        self.__dict__.update(state, _checked_rows=False)
        self._locks, self._guard, self._executor = locks_of(self.module), Guard(), Executor()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the (B, K) float32 logits of (B, C, H, W) inputs in the model's units, which are left unchanged."""
        self._guard.check()
        with locked(self._locks):
            outputs: Tensor = self._ordered(lambda: self._network(inputs)(self._own(inputs)))
        return outputs.float() if isinstance(outputs, Tensor) else outputs

    def _network(self, inputs: Tensor) -> Any:
        if self._executing and torch.is_inference_mode_enabled():
            return self._executor.network(self.module, self._own(inputs[:1]))
        return self.module

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Run the passes inside, which have no graph, through the `Executor`; other threads wait."""
        with locked(self._locks):
            before, self._executing = self._executing, True
            try:
                yield
            finally:
                self._executing = before

    def _own(self, inputs: Tensor) -> Tensor:
        """Return a copy for the network, which may write to it, in its precision and memory order."""
        return inputs.to(device=self.device, dtype=self.dtype, memory_format=self._order, copy=True)

    @property
    def spoilt(self) -> bool:
        """Whether it was changed by a plugin and could not be restored, so that it refuses to be used."""
        return bool(self._guard.reason)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network's inputs: that of its first floating-point weight."""
        return next((w.dtype for w in self.module.parameters() if w.is_floating_point()), torch.float32)

    def _ordered(self, run: Callable[[], T]) -> T:
        try:
            return run()
        except RuntimeError as error:
            if self._order is torch.contiguous_format or "view size is not compatible" not in str(error):
                raise
            # `view` fails on channels-last tensors; the contiguous layout gives identical results.
            self._order = torch.contiguous_format
            to_order(self.module, self._order)
        return run()

    def __repr__(self) -> str:
        """Name, device and number of classes."""
        return f"Model({self.name!r}, device={str(self.device)!r}, classes={len(self.classes)})"

    def around(self, module: nn.Module, *, card: ModelCard | None = None) -> Model:
        """Return a model of another network with the same inputs, classes and meaning of its scores."""
        names = {name for name, _ in module.named_modules()}
        hints = replace(
            self._hints,
            heads=tuple(head for head in self._hints.heads if head in names),
            layers=tuple((role, layer) for role, layer in self._hints.layers if layer in names),
        )
        model = Model(
            module,
            name=self.name,
            preprocessing=self.preprocessing,
            classes=self.classes,
            hints=hints,
            card=card or self.card,
            device=self.device,
            runtime=self.runtime,
        )
        model.outputs, model._declared = self.outputs, self._declared
        model.baselines = self.baselines
        model._checked_rows = self._checked_rows and type(model.module) is type(self.module)
        return model

    def declared(self, outputs: str | Outputs) -> Model:
        """Return a model of the same network whose outputs have another meaning, see `Outputs.parse`."""
        model = self.around(without_head(self.module))
        model._declare(Outputs.parse(outputs))
        return model

    def _declare(self, outputs: Outputs) -> None:
        head = {"binary": Signed, "regression": Columns}.get(outputs.kind)
        self.module = Headed(self.module, head()) if head else self.module
        self.outputs, self._declared = outputs, True
        self.classes = outputs.names(self.classes)

    def with_head(self, head: RowsHead, outputs: Outputs, classes: Sequence[str]) -> Model:
        """Return a model of the same network whose scores are the rows of a head, with their meaning and names."""
        model = self.around(Headed(without_head(self.module), head))
        model.outputs, model.classes, model._declared, model._checked_rows = outputs, tuple(classes), True, False
        return model

    def use_layer(self, name: str) -> None:
        """Use the layer that the user named for activation maps, instead of the traced one."""
        layers = tuple((role, layer) for role, layer in self._hints.layers if role != "features")
        self._hints = replace(self._hints, layers=(*layers, ("features", name)), reason="named by the user")
        self.__dict__.pop("structure", None)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of one input."""
        return self.preprocessing.size

    @property
    def weights_hash(self) -> str:
        """The sha256 of every parameter and buffer with its name; equal weights have equal hashes.

        It is computed again after a weight has been replaced or changed in place (not through `.data`).
        """
        # Much faster than building a state dict, and needed for every explanation.
        tensors = [
            tensor
            for module in self.module.modules()
            for table in (module._parameters, module._buffers)
            for tensor in table.values()
            if tensor is not None
        ]
        versions = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if self._hashed is None or self._hashed[0] != versions:
            self._hashed = (versions, hash_state(self.module.state_dict()))
        return self._hashed[1]

    @property
    def structure_hash(self) -> str:
        """The sha256 of architecture, options and layers for maps, which distinguishes models with equal weights."""
        drawn = re.sub(r" at 0x[0-9a-f]+", "", str(self.module))  # functions are printed with their addresses
        card = self.card
        options = [dict(part) for part in (card.options, card.objective_options, card.layers)]
        meaning = [] if self.outputs == Outputs() else [str(self.outputs)]
        made = canonical([drawn, card.architecture, card.objective, *options, *meaning])
        return sha256_of(made)

    @cached_property
    def row_bytes(self) -> int:
        """Memory of one row in a forward pass without a graph, in bytes, estimated once.

        The sum of the input and the four largest layer outputs, as if they were alive at the same time.
        """
        sizes: list[int] = []

        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.element_size() * output.nelement())

        inputs = torch.zeros(1, *self.input_size)
        with locked(self._locks), eager(self.module):
            handles = [part.register_forward_hook(note) for part in hookable(self.module).values()]
            try:
                with torch.inference_mode():
                    note(self.module, None, self._uncounted(inputs))
            finally:
                for handle in handles:
                    handle.remove()
        return inputs.element_size() * inputs.nelement() + sum(sorted(sizes)[-4:])

    def _uncounted(self, inputs: Tensor) -> Any:
        """Run the network past its root module's hooks, so that the pass is not counted as an explainer's."""
        return self._ordered(lambda: self.module.forward(self._own(inputs)))

    def check_rows(self) -> None:
        """Check, once per model, that the scores of an image depend on nothing but the image.

        Raises:
            ModelError: They are random, or depend on the rest of the batch; or the network cannot be run.
        """
        if not self._checked_rows:
            with locked(self._locks), self._guard.learning(self.module), torch.inference_mode():
                check_rows(self._uncounted, self.input_size, name=self.name)
            self._checked_rows = True

    def prepare(self, image: Image) -> tuple[Tensor, Geometry]:
        """Return the (C, H, W) input of an RGB image on the model's device, and its geometry."""
        inputs, geometry = self.preprocessing(image)
        return inputs.to(self.device), geometry

    def predict(self, inputs: Tensor) -> Tensor:
        """Return the (B, K) logits without a graph, validated by `checked`."""
        with torch.inference_mode(), self.autocast():
            logits = self(inputs)
        return self.checked(logits, rows=len(inputs))

    def checked(self, logits: Any, *, rows: int) -> Tensor:
        """Return what the network returned for `rows` images as (rows, K) float32 without a graph.

        Raises:
            ModelError: A logit is NaN or infinite, or the output is not one score per image and class name.
        """
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows:
            raise ModelError(f"model {self.name!r} does not return one row of class scores per image")
        if logits.shape[1] == 1 and not self._declared:
            raise ModelError(
                f"model {self.name!r} has one output, which may be a logit (binary) or a value (regression)", hint=HOW
            )
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(
                f"model {self.name!r} returned NaN or infinite class scores", hint="check its weights and precision"
            )
        check_class_names(self.classes, logits.shape[1], name=self.name)
        # Unlike an inference tensor, a clone made outside inference mode can take part in autograd.
        return logits.detach().float().clone()

    @cached_property
    def structure(self) -> Structure:
        """The layers by role, found by tracing one forward pass on noise on first access."""
        noise = torch.randn(1, *self.input_size, generator=torch.Generator().manual_seed(0))
        with locked(self._locks), torch.inference_mode(mode=False), eager(self.module):
            return self._ordered(lambda: trace(self.module, noise.to(self.device, self.dtype), self._hints))

    def layer(self, name: str | None = None) -> Layer:
        """Return the layer called `name`, or the default layer for activation maps, which has a `reason`."""
        return self.structure.layer(name)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run in mixed precision if the runtime enables it."""
        with torch.autocast(self.device.type, enabled=self.runtime.autocast):
            yield

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count the forward and backward passes of the network in this thread, whatever calls it."""
        counts, thread = Counts(), threading.get_ident()

        def backward(gradient: Tensor) -> None:
            counts.backward_passes += len(gradient)

        def forward(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and threading.get_ident() == thread:
                counts.forward_passes += len(output)
                if output.requires_grad:
                    output.register_hook(backward)

        with locked(self._locks):  # else a running `untouched` would remove the hook
            handle = self.module.register_forward_hook(forward)
        try:
            yield counts
        finally:
            handle.remove()

    @contextmanager
    def untouched(self, *, parallel: bool = False, by: Parametrised | None = None) -> Iterator[None]:
        """Restore the network on exit, also after an error: modules, modes, gradient flags, gradients and hooks.

        Inside, the network is in evaluation mode, no weight requires a gradient, gradients can be computed also under
        `torch.inference_mode()`, and other threads that use the model wait. Unless `parallel`, this thread may also use
        the state of the whole process, as with `exclusive`.

        `by` is the method whose code runs inside: the weights and the settings of the process are then watched and
        restored as well, and an exception is noted as its own.

        Raises:
            PluginError: `by` changed something, so that its result must not be used.
            ModelError: The model's scores are random, or depend on the rest of the batch; or the model was changed
                before and could not be restored.
        """
        with (
            nullcontext() if parallel else exclusive(),
            locked(self._locks),
            eager(self.module),
            torch.inference_mode(mode=False),
            self._evaluating(),
        ):
            if by is not None:
                self.check_rows()
            with self._guard.watching(self, by, parallel=parallel):
                yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Switch to evaluation mode and freeze the weights; return to the previous modes and flags on exit."""
        modules = list(self.module.modules())
        modes = [module.training for module in modules]
        weights = [
            weight
            for module in modules
            for weight in module._parameters.values()
            if weight is not None and weight.requires_grad
        ]
        # Setting an attribute of a module is slow, so only changes are written.
        if any(modes):
            self.module.eval()
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for module, training in zip(modules, modes, strict=True):
                if module.training != training:
                    module.training = training
            for weight in weights:
                weight.requires_grad_(True)

    @contextmanager
    def attention(self) -> Iterator[list[Tensor]]:
        """Record the attention probabilities of a token transformer, one (B, heads, T, T) tensor per block.

        Fused attention, which does not compute them, is disabled inside and restored on exit.

        Raises:
            ExplainerRefused: The model has no attention over all tokens of the image.
        """
        blocks: list[Any] = [
            module
            for module in self.module.modules()
            if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
        ]
        if not blocks:
            raise ExplainerRefused(f"model {self.name!r} has no attention layers whose probabilities can be recorded")
        maps: list[Tensor] = []

        def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            maps.append(output)

        with locked(self._locks), ExitStack() as stack:
            for module in blocks:
                stack.callback(setattr, module, "fused_attn", module.fused_attn)
                module.fused_attn = False
                stack.callback(module.attn_drop.register_forward_hook(record).remove)
            yield maps
