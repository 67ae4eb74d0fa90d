"""The training objective: classify by the sum of the patch votes, and make each vote its patch's Shapley value."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub import Group, Losses, Meta, Model, Objective, ParameterError, Step
from xaihub_shapley.network import Answers, ShapleyVision
from xaihub_shapley.sampling import sample_coalitions

__all__ = ["ShapleyObjective", "shapley_loss"]

# Half a weight a patch was the best where it was measured, up to 16 patches; more patches begin at the value of 20.
MOST = 10.0


def shapley_loss(phi: Tensor, values: Tensor, shown: Tensor, empty: Tensor | None = None) -> Tensor:
    """Return the mean squared error of summed votes against values, over classes, coalitions and pictures.

    Where the coalitions follow `sample_coalitions`, the minimiser over free votes is the Shapley vector of the game
    with these values inside and the sum of the votes as the value of the whole.

    Args:
        phi: (B, N, K) votes.
        values: (B, M, K) values v(s).
        shown: (B, M, N) coalitions s.
        empty: (K,) value of the empty coalition, 0 if not given.
    """
    worth = values if empty is None else values - empty
    return (worth - shown.to(phi) @ phi).square().mean()


class ShapleyObjective(Objective):
    """Cross-entropy + lambda * Shapley loss (Fan, Yang, Ma 2025, arXiv 2512.14354; its second term as in FastSHAP)."""

    def __init__(
        self,
        *,
        lambda_: Annotated[
            float | None,
            Meta(description="Weight of the Shapley loss (lambda on the command line); by default N / 2, at most 10."),
        ] = None,
        coalitions: Annotated[int, Meta(ge=2, description="Masked copies a picture and step, in pairs.")] = 2,
        mask: Annotated[
            Literal["pixel", "attention"], Meta(description="Absent patches are set to 0, or not attended to.")
        ] = "pixel",
        value: Annotated[
            Literal["visible", "full"], Meta(description="Who votes on a masked picture: patches present, or all.")
        ] = "visible",
        head: Annotated[
            Literal["linear", "mlp"], Meta(description="One linear layer, which can start as the classifier, or two.")
        ] = "linear",
        target_grad: Annotated[bool, Meta(description="Let gradients through the masked copies as well.")] = True,
        gamma: Annotated[
            float | None,
            Meta(description="Weight of the masked copies' cross-entropy; by default 0, and 1 without target_grad."),
        ] = None,
        ramp: Annotated[
            float, Meta(ge=0, le=1, description="Share of the steps over which lambda rises from 0.")
        ] = 0.1,
        centre: Annotated[bool, Meta(description="Compare votes and values less their means over classes.")] = False,
        classes: Annotated[
            int, Meta(ge=0, description="Compare the label and this many best classes only; 0 for all.")
        ] = 0,
        head_lr: Annotated[float, Meta(gt=0, description="Further factor on the patch head's learning rate.")] = 1.0,
    ) -> None:
        self.lambda_ = lambda_
        self.coalitions = coalitions
        self.mask = mask
        self.value = value
        self.head = head
        self.target_grad = target_grad
        self.gamma = gamma
        self.ramp = ramp
        self.centre = centre
        self.classes = classes
        self.head_lr = head_lr

    def wrap(self, model: Model) -> nn.Module:
        """Return the network that votes patch by patch."""
        self._check()
        return ShapleyVision(model.module, size=model.input_size, mask=self.mask, value=self.value, head=self.head).to(
            model.device
        )

    def trainable(self, network: nn.Module, head: nn.Module) -> nn.Module:  # noqa: ARG002
        """Return the patch head."""
        return _own(network).head

    def groups(self, network: nn.Module) -> list[Group]:
        """Return the patch head, which stands in the classifier's place and learns at its rate."""
        head = list(_own(network).head.parameters())
        return [Group(weights=head, lr_scale=self.head_lr, like_head=True)]

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:
        """Return both losses from one pass over the pictures and their masked copies."""
        shown = sample_coalitions(len(inputs), self.coalitions, _own(network).cells, generator=step.generator).to(
            inputs.device
        )
        answers: Answers = network(inputs, shown)
        phi, values, empty = (part.float() for part in (answers.phi, answers.values, answers.empty))
        logits = phi.sum(1)
        terms = {"cross_entropy": F.cross_entropy(logits, labels)}
        weight = self.weight(_own(network).cells) * self._risen(step)
        error = self._error(phi, values if self.target_grad else values.detach(), shown, empty, labels)
        if weight:
            terms["shapley"] = weight * error
        if self._gamma:
            repeated = labels.repeat_interleave(self.coalitions)
            terms["masked_cross_entropy"] = self._gamma * F.cross_entropy(values.flatten(0, 1), repeated)
        if self.value == "full":
            terms["empty"] = empty.square().sum()
        return Losses(terms=terms, logits=logits, notes={"lambda": weight, "shapley_error": float(error.detach())})

    def weight(self, players: int) -> float:
        """Return lambda for so many patches."""
        return min(players / 2, MOST) if self.lambda_ is None else self.lambda_

    def _error(self, phi: Tensor, values: Tensor, shown: Tensor, empty: Tensor, labels: Tensor) -> Tensor:
        if self.centre:
            phi, values, empty = (part - part.mean(-1, keepdim=True) for part in (phi, values, empty))
        if not 0 < self.classes < phi.shape[2] - 1:
            return shapley_loss(phi, values, shown, empty)
        best = (
            phi.sum(1).detach().scatter(1, labels.unsqueeze(1), torch.inf).topk(self.classes + 1, 1).indices
        )  # (B, k)
        chosen = best.unsqueeze(1)
        worth = values - empty
        return shapley_loss(
            phi.gather(2, chosen.expand(-1, phi.shape[1], -1)),
            worth.gather(2, chosen.expand(-1, worth.shape[1], -1)),
            shown,
        )

    @property
    def _gamma(self) -> float:
        return (0.0 if self.target_grad else 1.0) if self.gamma is None else self.gamma

    def _risen(self, step: Step) -> float:
        rising = self.ramp * step.total
        return min(1.0, (step.number + 1) / rising) if rising > 0 else 1.0

    def _check(self) -> None:
        if self.coalitions % 2:
            raise ParameterError(
                f"{self.coalitions} coalitions cannot be paired with their complements", hint="2, 4, 6"
            )
        for name, given in (("lambda", self.lambda_), ("gamma", self.gamma)):
            if given is not None and not 0 <= given < float("inf"):
                raise ParameterError(f"{name} cannot be {given!r}", hint="a number from 0 on")
        if not self.target_grad and self._gamma == 0:
            raise ParameterError(
                "target_grad=false with gamma=0 leaves the masked copies' values unanchored: training can diverge",
                hint="use gamma=1, or target_grad=true",
            )


def _own(network: nn.Module) -> ShapleyVision:
    """Return the network itself, whatever data parallelism has put around it."""
    inner = network
    while not isinstance(inner, ShapleyVision) and isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module  # type: ignore[assignment]
    if not isinstance(inner, ShapleyVision):
        raise ParameterError(
            f"the objective shapley cannot train a {type(inner).__name__}", hint="wrap the model first"
        )
    return inner
