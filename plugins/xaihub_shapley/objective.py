"""The training objective: classify by the sum of the patch votes, and make each vote its patch's Shapley value."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from xaihub import Group, Losses, Meta, Model, Objective, ParameterError, Step, evaluation_mode
from xaihub_shapley.network import Answers, ShapleyVision
from xaihub_shapley.sampling import sample_coalitions

__all__ = ["ShapleyObjective", "shapley_loss", "votes_loss"]

# Half a weight a patch was the best where it was measured, up to 16 patches; more patches begin at the value of 20.
MOST = 10.0


def shapley_loss(phi: Tensor, values: Tensor, shown: Tensor, empty: Tensor | None = None) -> Tensor:
    """Return the mean squared error of summed votes against values, over classes, coalitions and images.

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


def votes_loss(phi: Tensor, values: Tensor, shown: Tensor) -> Tensor:
    """Return the mean squared error of summed votes against values, less what coalitions of a size have in common.

    Where the coalitions follow `sample_coalitions(alike=True)`, its minimiser over free votes is the Shapley vector of
    any game with these values inside, up to a number that all patches share: within a size the sum of the votes does
    not matter, and between sizes nothing else does. That sum is most of what `shapley_loss` measures, and of its noise.

    Args:
        phi: (B, N, K) votes.
        values: (B, M, K) values v(s); v of nothing need not be known.
        shown: (B, M, N) coalitions s, in pairs of a coalition and its complement, M at least 4.
    """
    error: Tensor = (values - shown.to(phi) @ phi).unflatten(1, (-1, 2))  # (B, M / 2, 2, K)
    drawn = error.shape[1]
    spread = (error - error.mean(1, keepdim=True)).square().mean()
    return spread / (1 - 1 / drawn)  # the mean was taken from the same draws


class ShapleyObjective(Objective):
    """Cross-entropy + lambda * Shapley loss (Fan, Yang, Ma 2025, arXiv 2512.14354; its second term as in FastSHAP)."""

    lambda_: Annotated[
        float | None,
        Meta(description="Weight of the Shapley loss (lambda on the command line); by default N / 2, at most 10."),
    ] = None
    coalitions: Annotated[int, Meta(ge=2, description="Masked copies an image and step, in pairs.")] = 2
    mask: Annotated[
        Literal["pixel", "attention"], Meta(description="Absent patches are set to 0, or not attended to.")
    ] = "pixel"
    value: Annotated[
        Literal["visible", "full"], Meta(description="Who votes on a masked image: patches present, or all.")
    ] = "visible"
    head: Annotated[
        Literal["linear", "mlp"], Meta(description="One linear layer, which can start as the classifier, or two.")
    ] = "linear"
    target_grad: Annotated[bool, Meta(description="Let gradients through the masked copies as well.")] = True
    gamma: Annotated[
        float | None,
        Meta(description="Weight of the masked copies' cross-entropy; by default 0, and 1 without target_grad."),
    ] = None
    ramp: Annotated[float, Meta(ge=0, le=1, description="Share of the steps over which lambda rises from 0.")] = 0.1
    centre: Annotated[bool, Meta(description="Compare votes and values less their means over classes.")] = False
    classes: Annotated[int, Meta(ge=0, description="Compare the label and this many best classes only; 0 for all.")] = 0
    head_lr: Annotated[float, Meta(gt=0, description="Further factor on the patch head's learning rate.")] = 1.0
    votes_lambda: Annotated[
        float,
        Meta(ge=0, description="Weight of a second Shapley loss, which teaches the votes only; 0 leaves it out."),
    ] = 0.0
    votes_coalitions: Annotated[
        int, Meta(ge=4, description="Masked copies an image and step for it, in pairs, asked without gradients.")
    ] = 16
    votes_half: Annotated[
        bool, Meta(description="Ask these in bfloat16, which is faster where the processor has it.")
    ] = False

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
        """Return the losses from one pass over the images and their masked copies, and what only the votes learn."""
        own = _own(network)
        shown = sample_coalitions(len(inputs), self.coalitions, own.cells, generator=step.generator)
        shown = shown.to(inputs.device)
        answers: Answers = network(inputs, shown)
        phi, values, empty = (part.float() for part in (answers.phi, answers.values, answers.empty))
        logits = phi.sum(1)
        terms = {"cross_entropy": F.cross_entropy(logits, labels)}
        risen = self._risen(step)
        weight = self.weight(own.cells) * risen
        error = self._error(phi, values if self.target_grad else values.detach(), shown, empty, labels)
        notes = {"lambda": weight, "shapley_error": float(error.detach())}
        if weight:
            terms["shapley"] = weight * error
        if self.votes_lambda:
            error = self._votes_error(own, inputs, labels, phi, step)
            terms["votes"] = self.votes_lambda * risen * error
            notes["votes_error"] = float(error.detach())
        if self._gamma:
            repeated = labels.repeat_interleave(self.coalitions)
            terms["masked_cross_entropy"] = self._gamma * F.cross_entropy(values.flatten(0, 1), repeated)
        if self.value == "full":
            terms["empty"] = empty.square().sum()
        return Losses(terms=terms, logits=logits, notes=notes)

    def weight(self, players: int) -> float:
        """Return lambda for so many patches."""
        return min(players / 2, MOST) if self.lambda_ is None else self.lambda_

    def _error(self, phi: Tensor, values: Tensor, shown: Tensor, empty: Tensor, labels: Tensor) -> Tensor:
        if self.centre:
            phi, values, empty = (part - part.mean(-1, keepdim=True) for part in (phi, values, empty))
        return shapley_loss(*self._compared(phi, values - empty, labels), shown)

    def _votes_error(self, own: ShapleyVision, inputs: Tensor, labels: Tensor, phi: Tensor, step: Step) -> Tensor:
        """Compare votes with what the network, as it is used, answers to coalitions of one size an image."""
        shown = sample_coalitions(
            len(inputs), self.votes_coalitions, own.cells, generator=step.generator, alike=True
        ).to(inputs.device)
        half = torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.votes_half)
        with torch.no_grad(), evaluation_mode(own), half:
            values = torch.stack([own.value(inputs, row).float() for row in shown.unbind(1)], 1)
        # What all classes share is nobody's vote for a class, and would only be noise.
        phi, values = (part - part.mean(-1, keepdim=True) for part in (phi, values))
        return votes_loss(*self._compared(phi, values, labels), shown)

    def _compared(self, phi: Tensor, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the votes and values of the classes that are compared."""
        if not 0 < self.classes < phi.shape[2] - 1:
            return phi, values
        best = phi.sum(1).detach().scatter(1, labels.unsqueeze(1), torch.inf).topk(self.classes + 1, 1).indices
        chosen = best.unsqueeze(1)  # (B, 1, k)
        return tuple(part.gather(2, chosen.expand(-1, part.shape[1], -1)) for part in (phi, values))  # type: ignore[return-value]

    @property
    def _gamma(self) -> float:
        return (0.0 if self.target_grad else 1.0) if self.gamma is None else self.gamma

    def _risen(self, step: Step) -> float:
        if not torch.is_grad_enabled():  # what is held out: epochs are compared by their last weights
            return 1.0
        rising = self.ramp * step.total
        return min(1.0, (step.number + 1) / rising) if rising > 0 else 1.0

    def _check(self) -> None:
        self.check_parameters()
        for count in (self.coalitions, self.votes_coalitions):
            if count % 2:
                raise ParameterError(
                    f"{count} coalitions cannot be paired with their complements", hint="an even number"
                )
        for name, given in (("lambda", self.lambda_), ("gamma", self.gamma), ("votes_lambda", self.votes_lambda)):
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
