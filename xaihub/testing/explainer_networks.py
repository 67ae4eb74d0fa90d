"""Checks that an explainer gives a map, or a reason for refusing, on every kind of network."""

from __future__ import annotations

from xaihub.testing.catalogue import Refused, applies, check, raised, require
from xaihub.testing.explainer_subject import ExplainerSubject

_ADVICE = "support this network, or raise ExplainerRefused with the reason"


def _works_on(subject: ExplainerSubject, toy: str, called: str) -> None:
    """Require a map, or a reason for refusing."""
    trial = subject.trials[toy]
    if trial.error is not None:
        first = subject.trials["tiny_cnn"]
        same = trial is not first and first.error is not None and raised(first.error) == raised(trial.error)
        applies(not same, "it fails as on a convolutional network")
        require(False, f"on {called} it raised {raised(trial.error)}")
    if trial.refusal is not None:
        require(
            len(trial.refusal.split()) > 2,
            f"it refuses {called} without a reason ({trial.refusal!r})",
            advice="name in the refusal what the network lacks",
        )
        raise Refused(trial.refusal)
    applies(not trial.rejected, trial.rejected)


@check(
    "explainer", advice="give the class a static method `example_model(*, seed=0)` that returns a small model for it"
)
def works_on_a_network(subject: ExplainerSubject) -> None:
    """It explains one of the kit's networks, or the network from its `example_model`."""
    refusal = subject.trials[subject.home].refusal
    require(refusal is None, f"it refuses every network of the kit ({refusal}), so nothing else was checked")


@check("explainer", advice=_ADVICE)
def works_on_a_cnn(subject: ExplainerSubject) -> None:
    """It explains a convolutional network, or refuses with a reason."""
    _works_on(subject, "tiny_cnn", "a convolutional network")


@check("explainer", advice=_ADVICE)
def works_on_a_vit(subject: ExplainerSubject) -> None:
    """It explains a vision transformer, or refuses with a reason."""
    _works_on(subject, "tiny_vit", "a vision transformer")


@check("explainer", advice=f"convert feature maps with `Layer.to_grid`, which knows the order of axes; {_ADVICE}")
def works_with_channels_last(subject: ExplainerSubject) -> None:
    """It explains a network whose feature maps are (B, h, w, C), or refuses with a reason."""
    _works_on(subject, "tiny_nhwc", "a network with channels last")


@check("explainer", advice=_ADVICE)
def works_with_other_activations(subject: ExplainerSubject) -> None:
    """It explains a network with ReLU in place, ReLU6, SiLU and GELU, or refuses with a reason."""
    _works_on(subject, "tiny_mixed", "a network with ReLU6, SiLU and GELU")


@check("explainer", advice=f"expect layers that return tuples and records; {_ADVICE}")
def works_with_structured_outputs(subject: ExplainerSubject) -> None:
    """It explains a network whose parts return tuples and records with `.logits`, or refuses with a reason."""
    _works_on(subject, "tiny_structured", "a network whose parts return tuples and records")


@check("explainer", advice=f"do not assume a second class; {_ADVICE}")
def works_with_one_output(subject: ExplainerSubject) -> None:
    """It explains a network with a single logit, or refuses with a reason."""
    _works_on(subject, "tiny_one_output", "a network with one output")


@check("explainer", advice=f"take probabilities from `target.score`, not from a softmax of your own; {_ADVICE}")
def works_with_independent_labels(subject: ExplainerSubject) -> None:
    """It explains a network of several labels that do not exclude each other, or refuses with a reason."""
    _works_on(subject, "tiny_labels", "a network with several labels")
