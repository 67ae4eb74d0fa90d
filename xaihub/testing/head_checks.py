"""Checks of heads: finite rows of scores, one per image, that gradients pass through; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.models.headed import Head
from xaihub.models.model import Model
from xaihub.models.snapshot import Snapshot
from xaihub.specs import HeadSpec
from xaihub.testing.catalogue import Refused, check, raised, require
from xaihub.testing.process import Observation, observed
from xaihub.testing.toys import images, tiny_cnn, tiny_one_output, tiny_record

ROWS = 3
# Differences of scores, as a fraction of the largest, that come from the order of sums in a batch.
TOLERANCE = 1e-3


class HeadSubject:
    """A head's class and record, on the first network of the kit whose outputs it reads.

    A class whose networks return something else has a static method `example_model`, which returns a model.
    """

    def __init__(
        self, method: type[Head], *, spec: HeadSpec | None = None, parameters: Mapping[str, Any] | None = None
    ) -> None:
        """Check `method` with `parameters`."""
        self.method, self.spec = method, spec
        self.name = spec.name if spec is not None else method.__name__
        self.seen = Observation()
        self._given = dict(parameters or {})
        self._home: Callable[[], Model] | None = None
        self.reason = ""  # why it reads the outputs of no network

    def start(self) -> Model:
        """Return a new model with the head.

        Raises:
            Refused: It reads the outputs of no network.
        """
        own: Any = getattr(self.method, "example_model", None)
        homes: tuple[Any, ...] = (
            (self._home,) if self._home else (own,) if own else (tiny_cnn, tiny_record, tiny_one_output)
        )
        for home in homes:
            try:
                with torch.random.fork_rng(devices=[]):  # an `example_model` may draw its weights
                    model = home()
                model = self._with_head(model)
                self.rows(model, self.images(model))
            except XaihubError as error:
                self.reason = self.reason or str(error)
            except Exception as error:  # what it reads is not there
                self.reason = self.reason or f"it raised {raised(error)}"
            else:
                self._home = home
                return model
        raise Refused(f"it reads the outputs of no network of the kit: {self.reason}")

    def _with_head(self, model: Model) -> Model:
        with observed(self.seen):
            head = self.method(**self._given)
            head.name = self.name
            return model.with_head(head)

    def rows(self, model: Model, inputs: Tensor) -> Any:
        """Return what the head makes of the network's outputs for a batch, observed."""
        outputs = model.module.shell_network(inputs)
        with observed(self.seen):
            return model.module.shell_head.rows(outputs)

    def images(self, model: Model) -> Tensor:
        """Return images for a model."""
        size = model.input_size
        generator = torch.Generator().manual_seed(0)
        return images(ROWS) if size == tuple(images(1).shape[1:]) else torch.rand(ROWS, *size, generator=generator)

    def exercise(self) -> None:
        """Create it and run it once, observed."""
        model = self.start()
        self.rows(model, self.images(model))


@check("head", advice="fill in `HeadSpec(summary=...)`")
def record_is_complete(subject: HeadSubject) -> None:
    """The record has a one-line summary."""
    summary = "" if subject.spec is None else subject.spec.summary
    require(bool(summary), "its record has no summary")
    require(len(summary.splitlines()) == 1, "its summary is longer than one line")


@check("head", advice="give the class a static method `example_model`, which returns a model whose outputs it reads")
def works_on_a_network(subject: HeadSubject) -> None:
    """It reads the outputs of a network of the kit, or of its own `example_model`."""
    try:
        subject.start()
    except Refused as error:
        require(False, str(error))


@check("head", advice="return (B, K) scores, one row per image, and name all columns in `classes` or none")
def scores_are_rows(subject: HeadSubject) -> None:
    """Its scores are a finite floating-point tensor of shape (B, K), with one name per column or none."""
    model = subject.start()
    rows = subject.rows(model, subject.images(model))
    require(isinstance(rows, Tensor), f"it returned {type(rows).__name__}")
    require(rows.ndim == 2 and len(rows) == ROWS, f"the scores of {ROWS} images have the shape {tuple(rows.shape)}")
    require(rows.is_floating_point(), f"the scores are {rows.dtype}")
    require(bool(torch.isfinite(rows).all()), "some scores are NaN or infinite", advice="avoid divisions by 0")
    names = model.module.shell_head.classes
    require(len(names) in (0, rows.shape[1]), f"there are {len(names)} names for {rows.shape[1]} columns")


@check("head", advice="compute each row from the outputs for its own image")
def rows_are_independent(subject: HeadSubject) -> None:
    """An image has the same scores in a batch and alone, within 0.1 % of the largest."""
    model = subject.start()
    inputs = subject.images(model)
    with torch.inference_mode():
        together = subject.rows(model, inputs)
        alone = torch.cat([subject.rows(model, image[None]) for image in inputs])
    near = (together - alone).abs().max() <= TOLERANCE * together.abs().max()
    require(bool(near), "the scores of an image depend on the other images of its batch")


@check("head", advice="use differentiable operations: no `.detach()`, `.item()`, argmax or NumPy")
def scores_have_gradients(subject: HeadSubject) -> None:
    """Gradients of its scores reach the image, as explainers that need them require."""
    model = subject.start()
    inputs = subject.images(model).requires_grad_()
    rows = subject.rows(model, inputs)
    require(rows.requires_grad, "its scores have no gradient")
    (gradient,) = torch.autograd.grad(rows.sum(), inputs, allow_unused=True)
    require(gradient is not None and bool(gradient.any()), "the gradient of its scores is 0 everywhere")


@check("head", advice="clone what you change, and undo changes of the network in a `with` block or in `finally`")
def nothing_is_changed(subject: HeadSubject) -> None:
    """The network and its outputs are unchanged afterwards."""
    model = subject.start()
    state, inputs = Snapshot(model.module).with_contents(), subject.images(model)
    with torch.inference_mode():
        outputs = model.module.shell_network(inputs)
        before = [tensor.clone() for tensor in _tensors(outputs)]
        model.module.shell_head.rows(outputs)
    same = all(map(torch.equal, _tensors(outputs), before))
    require(same, "it changed the outputs of the network")
    require(not (changes := state.changes()), f"it {'; '.join(changes)}")


def _tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors of what a network returned."""
    if isinstance(outputs, Tensor):
        return [outputs]
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
