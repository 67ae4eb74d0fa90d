"""Models: a network with its preprocessing and classes, forward passes, counting and safe modification."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError
from xaihub.images import SourceImage
from xaihub.models.attention import recorded
from xaihub.models.backends import EAGER, Backend
from xaihub.models.checks import check_modules, check_returned, check_rows, check_scores, running
from xaihub.models.containment import Guard
from xaihub.models.ending import ending
from xaihub.models.executor import Executor
from xaihub.models.hashing import hash_state, hash_structure, versions_of
from xaihub.models.headed import BeforeClassifier, Columns, Head, Headed, Signed, identified, of_plugin, without_head
from xaihub.models.layer import Layer
from xaihub.models.network import evaluating, largest_outputs, prepared, to_order
from xaihub.models.outputs import Outputs
from xaihub.models.passes import DTYPES, Counts, Runtime
from xaihub.models.preprocessing import Geometry, Preprocessing
from xaihub.models.sharing import eager, locked, locks_of
from xaihub.models.structure import Hints, Structure, trace
from xaihub.models.text_encoder import TextEncoder
from xaihub.params import Parametrised
from xaihub.randomness import exclusive
from xaihub.specs import ModelCard

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


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
        text_encoder: Encodes texts that images can be compared with, or None.
    """

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
        text_encoder: TextEncoder | None = None,
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
        self.name, self.preprocessing, self.classes = name, preprocessing, tuple(classes)
        self.outputs, self._declared = Outputs(), False
        if outputs is not None:
            self._declare(Outputs.parse(outputs))
        self.card = card or ModelCard(name=name)
        self.runtime, self.text_encoder = runtime or Runtime(), text_encoder
        # Removal operators of plugins, by name; each is imported when it is called. Filled by the hub.
        self.baselines: Mapping[str, Callable[[], Callable[..., Any]]] = {}
        # Backends of plugins, by name, each imported when it is called, and the one that "auto" may choose.
        self.backends: Mapping[str, Callable[[], type[Backend]]] = {}
        self.automatic_backend = EAGER
        # How the hub loaded it, as keyword arguments and JSON types; None if it cannot be loaded again.
        self.loaded: dict[str, Any] | None = None
        self.code: Mapping[str, str] = {}  # of the user's function that built it: file, function, sha256 of the file
        self._hints = hints or Hints()
        self._hashed: tuple[list[tuple[int, int]], str] | None = None
        self._checked_rows = False
        self._locks, self._guard, self.executor = locks_of(self.module), Guard(), Executor()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the locks, the guard and the executor, so that a model can be copied."""
        self._guard.check()
        own = ("_locks", "_guard", "executor")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, with locks and a guard of its own."""
        self.__dict__.update(state, _checked_rows=False)
        self._locks, self._guard, self.executor = locks_of(self.module), Guard(), Executor()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the (B, K) float32 logits of (B, C, H, W) inputs in the model's units, which are left unchanged."""
        return self.passed(inputs, lambda own: self.executor.network(self.module, own))

    def passed(self, inputs: Tensor, choose: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> Tensor:
        """Return the scores of inputs by what `choose` returns for the network's own copy of them."""
        self._guard.check()
        with locked(self._locks):
            outputs = self._ordered(lambda: choose(own := self._own(inputs))(own))
        if isinstance(outputs, Tensor) and outputs.ndim == 2:  # else it is not explained itself
            check_returned(outputs, len(inputs), name=self.name)
        return outputs.float() if isinstance(outputs, Tensor) else outputs

    @contextmanager
    def executing(self, passes: int = 0) -> Iterator[None]:
        """Run the passes inside without a graph, at least `passes` of them; other threads wait."""
        with locked(self._locks), self.executor.running(self, passes):
            yield

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

    def around(self, module: nn.Module, *, card: ModelCard | None = None, device: Any = None) -> Model:
        """Return a model of another network with the same inputs, classes and meaning of its scores."""
        model = Model(
            module,
            name=self.name,
            preprocessing=self.preprocessing,
            classes=self.classes,
            hints=self._hints.within(module),
            card=card or self.card,
            device=device or self.device,
            runtime=self.runtime,
            text_encoder=self.text_encoder,
        )
        model.outputs, model._declared = self.outputs, self._declared
        model.baselines, model.code = self.baselines, self.code
        model.backends, model.automatic_backend = self.backends, self.automatic_backend
        model._checked_rows = self._checked_rows and type(model.module) is type(self.module)
        return model

    def declared(self, outputs: str | Outputs) -> Model:
        """Return a model of the same network whose outputs have another meaning."""
        model = self.around(without_head(self.module))
        model.classes = () if self.outputs.kind == "binary" else self.classes
        model._declare(Outputs.parse(outputs))
        return model

    def _declare(self, outputs: Outputs) -> None:
        head = {"binary": Signed, "regression": Columns}.get(outputs.kind)
        self.module = Headed(self.module, head()) if head else self.module
        self.outputs, self._declared = outputs, True
        self.classes = outputs.names(self.classes)

    def with_head(self, head: Head) -> Model:
        """Return a model of the same network whose scores are the rows of a head.

        Raises:
            PluginError: The code of a plugin's head raises.
        """
        with of_plugin(head):
            head.bind(self)
        return self._reading(Headed(without_head(self.module), head), head.outputs, head.classes)

    def _reading(self, module: nn.Module, outputs: Outputs, classes: tuple[str, ...] = ()) -> Model:
        model = self.around(module)
        model.outputs, model.classes, model._declared, model._checked_rows = outputs, classes, True, False
        return model

    def before_classifier(self) -> Model:
        """Return a model of the same network whose outputs are the features that its classifier reads.

        Raises:
            ModelError: The classifier was not found.
        """
        name = self.structure.head
        if not name:
            raise ModelError(
                f"the classifier of model {self.name!r} was not found, so its features are unknown",
                hint="if it returns features, declare them: --outputs embedding",
            )
        return self._reading(BeforeClassifier(without_head(self.module), name), Outputs("embedding"))

    @property
    def head(self) -> str:
        """The title of the head that computes the scores, or "" if the network returns them."""
        return self.module.shell_head.title if isinstance(self.module, Headed) else ""

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

        It is computed again after a weight was replaced or changed in place (not through `.data`), but not by a method.
        """
        return self._guard.weights_hash or self.fresh_weights_hash()

    def fresh_weights_hash(self) -> str:
        """Return the hash of the weights as they are now."""
        versions = versions_of(self.module)
        if self._hashed is None or self._hashed[0] != versions:
            self._hashed = (versions, hash_state(self.module.state_dict()))
        return self._hashed[1]

    @property
    def structure_hash(self) -> str:
        """The sha256 of architecture, options and layers for maps, which distinguishes models with equal weights."""
        head = identified(self.module.shell_head) if self.head else []
        meaning = [str(self.outputs), *head] if head or self.outputs != Outputs() else []
        return hash_structure(self.module, self.card, [*meaning, *([self.code["sha256"]] if self.code else [])])

    @cached_property
    def row_bytes(self) -> int:
        """Memory of one row in a forward pass without a graph, in bytes, estimated once.

        The sum of the input and the four largest layer outputs, as if they were alive at the same time.
        """
        inputs = torch.zeros(1, *self.input_size)
        with locked(self._locks), eager(self.module):
            largest = largest_outputs(self.module, lambda: self._uncounted(inputs))
        return inputs.element_size() * inputs.nelement() + sum(largest)

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

    def prepare(self, image: Image | SourceImage) -> tuple[Tensor, Geometry]:
        """Return the (C, H, W) input of an image on the model's device, and its geometry."""
        inputs, geometry = self.preprocessing(image)
        return inputs.to(self.device), geometry

    def predict(self, inputs: Tensor) -> Tensor:
        """Return the (B, K) logits without a graph, validated by `checked`."""
        with running(self.name, inputs.shape[1:]), torch.inference_mode(), self.autocast():
            logits = self(inputs)
        return self.checked(logits, rows=len(inputs))

    def checked(self, logits: Any, *, rows: int) -> Tensor:
        """Return what the network returned for `rows` images as (rows, K) float32 without a graph.

        Raises:
            ModelError: A logit is NaN or infinite, the output is not one row of scores per image, its meaning is open,
                or there are more or fewer class names than scores.
        """
        check_scores(logits, rows, self.classes, name=self.name, declared=self._declared)
        # Unlike an inference tensor, a clone made outside inference mode can take part in autograd.
        scores: Tensor = logits.detach().float().clone()
        return scores

    @cached_property
    def structure(self) -> Structure:
        """The layers by role, found by tracing one forward pass on noise on first access."""
        noise = torch.randn(1, *self.input_size, generator=torch.Generator().manual_seed(0))
        with locked(self._locks), torch.inference_mode(mode=False), eager(self.module):
            return self._ordered(lambda: trace(self.module, noise.to(self.device, self.dtype), self._hints))

    @cached_property
    def ending(self) -> str | None:
        """The operation that ends the network: "sigmoid", "softmax", or "" for any other; None if it is unknown."""
        blank = torch.zeros(1, *self.input_size, device=self.device, dtype=self.dtype)
        with locked(self._locks), torch.inference_mode(mode=False), eager(self.module), torch.enable_grad():
            pixels = blank.clone().requires_grad_()
            return ending(self._ordered(lambda: without_head(self.module).forward(pixels.clone())))

    def layer(self, name: str | None = None) -> Layer:
        """Return the layer called `name`, or the default layer for activation maps, which has a `reason`."""
        return self.structure.layer(name)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run in mixed precision if the runtime asks for it."""
        dtype = DTYPES.get(self.runtime.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
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
            evaluating(self.module),
        ):
            if by is not None:
                self.check_rows()
            with self.executor.one_period(), self._guard.watching(self, by, parallel=parallel):
                yield

    @contextmanager
    def attention(self) -> Iterator[list[Tensor]]:
        """Record the attention probabilities of a token transformer, one (B, heads, T, T) tensor per block.

        Fused attention, which does not compute them, is disabled inside and restored on exit.

        Raises:
            ExplainerRefused: The model has no attention over all tokens of the image.
        """
        with recorded(self.module, who=self.name, locks=self._locks) as maps:
            yield maps
