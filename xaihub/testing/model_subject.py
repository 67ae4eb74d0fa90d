"""An adapter or a model card under test: built once, with weights that are available on this machine."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xaihub.errors import MissingExtra, ModelError
from xaihub.models.adapter import ModelAdapter, ModelRequest
from xaihub.models.model import Model
from xaihub.specs import AdapterSpec, ModelCard, Weights
from xaihub.testing.catalogue import NotApplicable, applies
from xaihub.testing.process import Observation, observed

ROWS = 2
OFFLINE = ("cannot be downloaded", "no connection", "cannot be found on the hub")


class ModelSubject:
    """The model that an adapter builds from a card."""

    def __init__(self, card: ModelCard, adapter: ModelAdapter) -> None:
        """Check the model that `adapter` builds from `card`."""
        self.card, self.adapter, self.name = card, adapter, card.name

    def build(self, *, card: ModelCard | None = None, checkpoint: str | None = None, seed: int = 0) -> Model:
        """Build a new model, with seeded random weights if the card has none.

        Raises:
            NotApplicable: Its weights are not available on this machine.
        """
        card = card or self.card
        request = ModelRequest(name=card.name, card=card, checkpoint=checkpoint)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return self.adapter.build(request, torch.device("cpu"))
        except MissingExtra as error:
            raise NotApplicable(str(error)) from error
        except ModelError as error:
            if any(word in error.message for word in OFFLINE):
                raise NotApplicable(f"its weights are not available on this machine: {error.message}") from error
            raise

    @cached_property
    def model(self) -> Model:
        """The model, built once.

        Raises:
            NotApplicable: It cannot be built, which `can_be_built` reports.
        """
        try:
            return self.build()
        except NotApplicable:
            raise
        except Exception as error:  # the plugin fence: a plugin may fail in any way, and a check reports it
            raise NotApplicable(f"it cannot be built: {error}") from error

    def reloaded(self) -> tuple[nn.Module, Model]:
        """Return the network with slightly changed weights, and a model that loaded these weights from a file."""
        changed = deepcopy(self.model.module)
        generator = torch.Generator().manual_seed(0)
        for value in changed.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + 0.05 * torch.rand(value.shape, generator=generator))
        with TemporaryDirectory() as folder:
            file = Path(folder) / "weights.safetensors"
            save_file({key: value.clone().contiguous() for key, value in changed.state_dict().items()}, file)
            empty = replace(self.card, weights=Weights(source="none"))
            return changed, self.build(card=empty, checkpoint=str(file), seed=1)

    def inputs(self) -> Tensor:
        """Return (2, C, H, W) noise of the model's input size."""
        return torch.randn(ROWS, *self.model.input_size, generator=torch.Generator().manual_seed(0))


class AdapterSubject(ModelSubject):
    """One source of models, represented by an example architecture with random weights."""

    def __init__(self, spec: AdapterSpec, adapter: ModelAdapter) -> None:
        """Check `adapter` on the first of its `examples` or names."""
        self.spec = spec
        self.seen = Observation()
        known = [*adapter.examples] or adapter.names()[:1]
        self.example = known[0] if known else ""
        card = ModelCard(
            name=self.example, adapter=spec.name, architecture=self.example, weights=Weights(source="none")
        )
        super().__init__(card, adapter)
        self.name = spec.name

    def exercise(self) -> None:
        """Build the example, observed.

        Raises:
            NotApplicable: It cannot be built, which `can_be_built` reports.
        """
        with observed(self.seen):
            _ = self.model

    def build(self, *, card: ModelCard | None = None, checkpoint: str | None = None, seed: int = 0) -> Model:
        """Build the example.

        Raises:
            NotApplicable: There is none.
        """
        applies(bool(self.example), "it has no `examples` and no `names`")
        return super().build(card=card, checkpoint=checkpoint, seed=seed)
