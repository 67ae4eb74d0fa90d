"""Training an image model with a gate: the scores train with the rest of the network, from the task's loss alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from xaihub import Finished, Group, Losses, Meta, Model, ModelError, Objective, Step, When
from xaihub_scores_activation.gate import ScoresActivation, gates, warn_of_batch_norm, warnings_of_flatness
from xaihub_scores_activation.placement import Gain, GatedHead, GatedPositions, Site, attach, folded

LARGEST = "largest_weight_times_mean"  # the name of that figure in the log and on the card
TOP = 10  # features named in the record of an epoch
DIGITS = 6  # significant digits of a weight in that record


class GatedClassifier(Objective):
    """Cross-entropy through a softmax gate on channels, positions, patches or input channels."""

    on_features = True
    soft_labels = True
    weighs_classes = True

    site: Annotated[
        Site,
        Meta(
            description="What is ranked: the classifier's input channels, positions of the last feature map,"
            " patches of the image, or input channels of the image."
        ),
    ] = "channels"
    gain: Annotated[
        Gain,
        Meta(description="Factor on the gated features: d, their number (the identity at the start), or 1 (literal)."),
    ] = "d"
    temperature: Annotated[float, Meta(gt=0, description="Divides the scores before the softmax.")] = 1.0
    score_lr: Annotated[
        float,
        Meta(gt=0, description="Learning-rate multiplier for the scores, relative to the layer that follows."),
    ] = 10.0
    entropy: Annotated[
        float,
        Meta(ge=0, description="Weight of the weights' entropy in the loss; 0 trains on the task's loss alone."),
    ] = 0.0
    patches: Annotated[int, Meta(ge=2, description="Patches per side."), When(site="patches")] = 7
    smoothing: Annotated[float, Meta(ge=0, lt=1, description="Label smoothing.")] = 0.0
    fold: Annotated[
        bool, Meta(description="Fold the gate into the classifier and save a plain model, which has no gate to read.")
    ] = False

    def wrap(self, model: Model) -> nn.Module:
        """Insert the gate into the model's network.

        Raises:
            ParameterError: A parameter is out of range, or has no effect with the others.
            ModelError: The network has no such site, or the gate could not be folded afterwards.
        """
        self.check_parameters()
        if self.fold and self.site != "channels":
            raise ModelError(f"a gate on {self.site} cannot be folded", hint="use fold=false, or site=channels")
        network = attach(model, self.site, gain=self.gain, temperature=self.temperature, patches=self.patches).to(
            model.device
        )
        warn_of_batch_norm(network, torch.zeros(2, *model.input_size, device=model.device))
        return network

    def trainable(self, network: nn.Module, head: nn.Module) -> nn.Module:  # noqa: ARG002 - the gate determines it
        """Return the gate with the layers that follow it.

        Raises:
            ModelError: The gate lies before the backbone.
        """
        for part in network.modules():
            if isinstance(part, (GatedHead, GatedPositions)):
                return part
        raise ModelError(
            f"a gate on {self.site} lies before the backbone, which therefore cannot be frozen",
            hint="train the whole network, or use site=channels or site=positions",
        )

    def groups(self, network: nn.Module) -> list[Group]:
        """Return the scores, with their own learning rate and no weight decay, which would level the weights."""
        # The rate counts relative to that of the layer that follows, which could absorb the gate.
        beside_head = self.site in ("channels", "positions")
        scores = [_gate(network).scores]
        return [Group(weights=scores, lr_scale=self.score_lr, weight_decay=0.0, like_head=beside_head)]

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:  # noqa: ARG002
        """Return the cross-entropy of one batch, and the entropy term if it has a weight."""
        logits = network(inputs)
        terms = {"cross_entropy": self.cross_entropy(logits, labels, smoothing=self.smoothing)}
        if self.entropy:
            gate = _gate(network)
            weights = gate.factors() / gate.factor
            terms["entropy"] = self.entropy * torch.special.entr(weights).sum()  # 0 log 0 is 0
        return Losses(terms=terms, logits=logits)

    def epoch_end(self, network: nn.Module, epoch: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the current weights, which are a ranking at any moment, and the top features."""
        gate = _gate(network)
        weights = gate.weights().double()
        return {
            "scores": {
                "top": gate.ranking()[:TOP].tolist(),
                "weights": [float(f"{weight:.{DIGITS}g}") for weight in weights.tolist()],
            }
        }

    def figures(self, network: nn.Module, record: Mapping[str, Any]) -> Mapping[str, float]:  # noqa: ARG002
        """Return the largest weight as a multiple of the mean weight."""
        return {LARGEST: _gate(network).largest()}

    def advice(self, figures: Mapping[str, float]) -> list[str]:
        """Warn if the weights are nearly equal."""
        return warnings_of_flatness(figures[LARGEST]) if LARGEST in figures else []

    def finish(self, network: nn.Module) -> Finished:
        """Return the gated network, or with `fold` a plain one with the same outputs."""
        if self.fold:
            return Finished(network=folded(network), wrapped=False)
        return Finished(network=network, wrapped=True)


def _gate(network: nn.Module) -> ScoresActivation:
    found = gates(network)
    if len(found) != 1:
        raise ModelError(f"the network has {len(found)} gates, but the objective trains exactly one")
    return found[0][1]
