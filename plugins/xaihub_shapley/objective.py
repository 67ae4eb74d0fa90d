"""The training objective: classify by the sum of the patch scores, and train each score to be a Shapley value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from xaihub import Group, Losses, Meta, Model, Objective, ParameterError, Step, Unless, evaluation_mode
from xaihub_shapley.held_out import COALITIONS, FAITHFUL, R2, describe, errors, r2
from xaihub_shapley.losses import check_even, patch_score_loss, sample_coalitions, shapley_loss
from xaihub_shapley.network import ShapleyVision


class ShapleyObjective(Objective):
    """Cross-entropy + lambda * Shapley loss (Fan, Yang, Ma 2025, arXiv 2512.14354; its second term as in FastSHAP)."""

    weighs_classes = True

    lambda_: Annotated[
        float,
        Meta(
            ge=0,
            description="Weight of the Shapley loss (lambda on the command line). 0: the baseline model, for which"
            " target_grad, centre, classes and ramp do nothing unless votes_lambda is set.",
        ),
    ] = 1.0
    coalitions: Annotated[int, Meta(ge=2, description="Masked copies per image and step; an even number.")] = 2
    mask: Annotated[
        Literal["pixel", "attention"],
        Meta(description="Set masked patches to 0 (pixel) or keep them out of attention (plain ViTs only)."),
    ] = "pixel"
    value: Annotated[
        Literal["visible", "full"],
        Meta(description="Patch scores that a masked image's class scores sum: those of visible patches, or all."),
    ] = "visible"
    target_grad: Annotated[bool, Meta(description="Backpropagate through the masked copies as well.")] = True
    gamma: Annotated[
        float | None,
        Meta(description="Weight of the masked copies' cross-entropy; by default 0, or 1 if target_grad is false."),
    ] = None
    ramp: Annotated[float, Meta(ge=0, le=1, description="Fraction of the steps over which lambda rises from 0.")] = 0.1
    centre: Annotated[
        bool, Meta(description="Subtract the mean over classes from patch scores and values in the Shapley loss.")
    ] = False
    classes: Annotated[
        int, Meta(ge=0, description="Compare only the label and this many highest-scoring classes; 0 compares all.")
    ] = 0
    votes_lambda: Annotated[
        float,
        Meta(ge=0, description="Weight of a second loss that trains the patch scores only; 0 disables it."),
    ] = 0.0
    votes_coalitions: Annotated[
        int,
        Meta(ge=4, description="Masked copies per image and step for the second loss, without gradients; even."),
        Unless(votes_lambda=0.0),
    ] = 16
    votes_half: Annotated[
        bool,
        Meta(description="Evaluate these copies in bfloat16, which is faster on processors that support it."),
        Unless(votes_lambda=0.0),
    ] = False

    def wrap(self, model: Model) -> nn.Module:
        """Return the network that scores patches."""
        self._check()
        return ShapleyVision(model.module, size=model.input_size, mask=self.mask, value=self.value).to(model.device)

    def trainable(self, network: nn.Module, head: nn.Module) -> nn.Module:  # noqa: ARG002
        """Return the patch head."""
        return _unwrapped(network).head

    def groups(self, network: nn.Module) -> list[Group]:
        """Return the patch head, which replaces the classifier and learns at its rate."""
        return [Group(weights=list(_unwrapped(network).head.parameters()), like_head=True)]

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        """Return the losses from one forward pass over images and masked copies, plus the loss of the patch scores."""
        inner = _unwrapped(network)
        shown = sample_coalitions(len(inputs), self.coalitions, inner.cells, generator=step.generator)
        shown = shown.to(inputs.device)
        phi, values, empty = (part.float() for part in network(inputs, shown))
        logits = phi.sum(1)
        terms = {"cross_entropy": self.cross_entropy(logits, labels)}
        ramp = self._ramp(step)
        weight = self.lambda_ * ramp
        error = self._error(phi, values if self.target_grad else values.detach(), shown, empty, labels)
        notes = {"lambda": weight, "shapley_error": float(error.detach())}
        if weight:
            terms["shapley"] = weight * error
        if self.votes_lambda:
            error = self._patch_score_error(inner, inputs, labels, phi, step)
            terms["votes"] = self.votes_lambda * ramp * error
            notes["votes_error"] = float(error.detach())
        if not torch.is_grad_enabled():
            notes |= self._held_out_fit(inner, inputs, phi, empty, step)
        if self._gamma:
            repeated = labels.repeat_interleave(self.coalitions)
            terms["masked_cross_entropy"] = self._gamma * self.cross_entropy(values.flatten(0, 1), repeated)
        if self.value == "full":
            terms["empty"] = empty.square().sum()
        return Losses(terms=terms, logits=logits, notes=notes)

    def figures(self, network: nn.Module, record: Mapping[str, Any]) -> Mapping[str, float]:  # noqa: ARG002
        """Return R2 of the patch scores: how much of the variance of masked held-out images' outputs they predict.

        Outputs are class scores minus their mean over classes; the variance is that within an image and class, over
        coalitions drawn by the Shapley kernel (our choice). 1 is reached only if patches also ignore each other.
        """
        return r2(record.get("val/masked_error", 0.0), record.get("val/masked_variance", 0.0))

    def advice(self, figures: Mapping[str, float]) -> list[str]:
        """Warn if the patch scores do not predict the masked outputs."""
        return [describe(figures[R2])] if figures.get(R2, FAITHFUL) < FAITHFUL else []

    def _error(self, phi: Tensor, values: Tensor, shown: Tensor, empty: Tensor, labels: Tensor) -> Tensor:
        if self.centre:
            phi, values, empty = map(_centred, (phi, values, empty))
        return shapley_loss(*self._compared(phi, values - empty, labels), shown)

    def _patch_score_error(
        self, network: ShapleyVision, inputs: Tensor, labels: Tensor, phi: Tensor, step: Step
    ) -> Tensor:
        """Compare patch scores with the network's values, in evaluation mode, for coalitions of one size per image."""
        shown = sample_coalitions(
            len(inputs), self.votes_coalitions, network.cells, generator=step.generator, alike=True
        ).to(inputs.device)
        half = torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.votes_half)
        with torch.no_grad(), evaluation_mode(network), half:
            values = _values(network, inputs, shown)
        # What all classes share supports none of them, and would only add noise.
        return patch_score_loss(*self._compared(_centred(phi), _centred(values), labels), shown)

    def _held_out_fit(
        self, network: ShapleyVision, inputs: Tensor, phi: Tensor, empty: Tensor, step: Step
    ) -> dict[str, float]:
        """Return the squared error of the patch scores' predictions of masked outputs, and the outputs' variance."""
        shown = sample_coalitions(len(inputs), COALITIONS, network.cells, generator=step.generator).to(inputs.device)
        return errors(_centred(phi), _centred(_values(network, inputs, shown) - empty), shown)

    def _compared(self, phi: Tensor, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patch scores and values of the classes that are compared."""
        if not 0 < self.classes < phi.shape[2] - 1:
            return phi, values
        best = phi.sum(1).detach().scatter(1, labels.unsqueeze(1), torch.inf).topk(self.classes + 1, 1).indices
        chosen = best.unsqueeze(1)  # (B, 1, k)
        return tuple(part.gather(2, chosen.expand(-1, part.shape[1], -1)) for part in (phi, values))  # type: ignore[return-value]

    @property
    def _gamma(self) -> float:
        return (0.0 if self.target_grad else 1.0) if self.gamma is None else self.gamma

    def _ramp(self, step: Step) -> float:
        if not torch.is_grad_enabled():  # validation: epochs are compared with the final weights of the losses
            return 1.0
        rising = self.ramp * step.total
        return min(1.0, (step.number + 1) / rising) if rising > 0 else 1.0

    def _check(self) -> None:
        self.check_parameters()
        check_even(self.coalitions)
        check_even(self.votes_coalitions)
        for name, given in (("lambda", self.lambda_), ("gamma", self.gamma), ("votes_lambda", self.votes_lambda)):
            if given is not None and not 0 <= given < float("inf"):
                raise ParameterError(f"{name} cannot be {given!r}", hint="use a finite number of at least 0")
        if not self.target_grad and self._gamma == 0:
            raise ParameterError(
                "target_grad=false with gamma=0 leaves the masked copies' values unanchored: training can diverge",
                hint="use gamma=1, or target_grad=true",
            )


def _centred(values: Tensor) -> Tensor:
    """Subtract the mean over classes."""
    return values - values.mean(-1, keepdim=True)


def _values(network: ShapleyVision, inputs: Tensor, shown: Tensor) -> Tensor:
    """Return the (B, M, K) values of (B, M, N) coalitions, with B rows per forward pass."""
    return torch.stack([network(inputs, row).float() for row in shown.unbind(1)], 1)


def _unwrapped(network: nn.Module) -> ShapleyVision:
    """Return the network inside a data-parallel wrapper, or the network itself."""
    inner: Any = network
    while not isinstance(inner, ShapleyVision):
        inner = inner.module
    return inner
