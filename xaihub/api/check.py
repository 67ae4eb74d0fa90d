"""Can a map be trusted? It is scored beside random maps, with randomised weights, and under another seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isnan
from typing import TYPE_CHECKING, Any

from xaihub.errors import MetricRefused, XaihubError
from xaihub.metric import Case, Scene
from xaihub.ranking import correlation

if TYPE_CHECKING:
    from xaihub.evaluation.isolation import Isolation
    from xaihub.explainers.explainer import Explainer
    from xaihub.explainers.explanation import Explanation
    from xaihub.hub import Hub

RANDOM_MAPS = 5
ALIKE = 0.5  # rank correlation from which two maps count as alike


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was measured for one map; None is what could not be, or need not be.

    Passing is necessary, not sufficient. Both limits are our choice: a map passes if its insertion score is higher than
    that of each of 5 random maps (by chance in one case of six), if its mean rank correlation with the maps of
    increasingly randomised copies of the network is below 0.5, and that with the map of another seed at least 0.5.

    Attributes:
        insertion: Area under the insertion curve, in [0, 1].
        random: Insertion of the random maps.
        randomised: Mean rank correlation with the maps of networks with randomised weights (mprt), in [-1, 1].
        seeds: Rank correlation with the map of another seed; None for a method that draws no random numbers.
        reasons: Why a part could not be measured.
    """

    insertion: float | None = None
    random: tuple[float, ...] = ()
    randomised: float | None = None
    seeds: float | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool | None:
        """False if a part failed, None if none did but one could not be measured."""
        if any(not good for good, _ in self._parts()):
            return False
        return None if self.reasons else True

    @property
    def verdict(self) -> str:
        """The result in words."""
        words = {
            True: "passed, which does not prove that the map is right",
            False: "failed, so do not trust this map",
            None: "incomplete",
        }
        parts = [text for good, text in sorted(self._parts(), key=lambda part: part[0])]
        return f"{words[self.passed]}: {'; '.join([*parts, *(f'{name}: {why}' for name, why in self.reasons.items())])}"

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers and the verdict, as JSON types."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "insertion": self.insertion,
            "random": list(self.random),
            "randomised": self.randomised,
            "seeds": self.seeds,
            "reasons": self.reasons,
        }

    def _parts(self) -> list[tuple[bool, str]]:
        """Return whether each part that was measured is good, and a clause about it."""
        parts: list[tuple[bool, str]] = []
        if self.insertion is not None and self.random:
            low, high = min(self.random), max(self.random)
            good = self.insertion > high
            words = "better than each" if good else "not better than each"
            parts.append((good, f"insertion {self.insertion:.3f} is {words} of {len(self.random)} random maps"
                                f" ({low:.3f} to {high:.3f})"))  # fmt: skip
        if self.randomised is not None:
            good = self.randomised < ALIKE
            words = "changes" if good else "hardly changes"
            parts.append((good, f"it {words} when the weights are randomised (correlation {self.randomised:.2f})"))
        if self.seeds is not None:
            good = self.seeds >= ALIKE
            words = "hardly changes with another seed" if good else "changes with another seed, so it needs more passes"
            parts.append((good, f"it {words} (correlation {self.seeds:.2f})"))
        return parts


class Checker:
    """Checks maps with the metrics and the control of a hub."""

    def __init__(self, hub: Hub) -> None:
        """Make the metrics and the control."""
        self._insertion, self._mprt = hub.get_metric("insertion"), hub.get_metric("mprt")
        self._control = hub.get_explainer("control_random")

    def check(
        self, scene: Scene, explainer: Explainer, explanation: Explanation, *, seed: int, isolation: Isolation
    ) -> Check:
        """Check a map of one image that `explainer` made from `seed`; what cannot be measured has a reason."""
        case = Case(scene=scene, explanation=explanation, explainer=explainer, seed=seed)
        found: dict[str, Any] = {}
        reasons: dict[str, str] = {}

        def explain(method: Explainer, other: int) -> Explanation:
            inputs, logits = scene.image[None], scene.logits[None]
            return isolation.explain(method, scene.model, inputs, scene.target.fixed(), seed=other, logits=logits)

        def random() -> tuple[float, ...]:
            maps = [explain(self._control, seed + 1 + number) for number in range(RANDOM_MAPS)]
            cases = [Case(scene=scene, explanation=one, explainer=self._control, seed=seed) for one in maps]
            return tuple(isolation.measure(self._insertion, one)[0].value for one in cases)

        def seeds() -> float | None:
            if not explainer.stochastic:
                return None
            other = explain(explainer, seed + 1).heatmap()
            alike = float(correlation(case.heat.flatten(), other.flatten(), ranks=True))
            if isnan(alike):
                raise MetricRefused("a map is constant, so it has no ranks to correlate")
            return alike

        parts: dict[str, Callable[[], Any]] = {
            "insertion": lambda: isolation.measure(self._insertion, case)[0].value,
            "random": random,
            "randomised": lambda: isolation.measure(self._mprt, case)[0].value,
            "seeds": seeds,
        }
        for name, measure in parts.items():
            try:
                found[name] = measure()
            except XaihubError as error:
                reasons[name] = str(error)
        return Check(**found, reasons=reasons)
