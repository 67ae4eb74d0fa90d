"""Model parameter randomisation test (Adebayo et al. 2018, arXiv 1810.03292, Sec. 3)."""

from __future__ import annotations

from statistics import fmean
from typing import Annotated

from xaihub import Case, ExplainerRefused, Measurement, Meta, Metric, MetricRefused, ModelError
from xaihub_metrics_sanity.randomise import Order, Weights, randomised
from xaihub_metrics_sanity.similarity import Similarity, similarity


class MPRT(Metric):
    """Similarity of the map to those of copies of the network with randomised weights; lower is better."""

    similarity: Annotated[Similarity, Meta(description="Similarity of two maps.")] = "spearman"
    order: Annotated[
        Order, Meta(description="Randomise stages from the output down, cumulatively or one at a time.")
    ] = "cascading"
    layers: Annotated[int, Meta(ge=1, le=200, description="Number of stages; each costs one explanation.")] = 5
    absolute: Annotated[bool, Meta(description="Compare absolute values.")] = True
    weights: Annotated[
        Weights, Meta(description="Redraw with each module's own initialisation, or shuffle the trained values.")
    ] = "initial"

    def score(self, case: Case) -> Measurement:
        """Return the mean similarity over the stages, in [-1, 1], with the similarity of each stage.

        Raises:
            MetricRefused: The network has no parameters, the map is empty, or a copy cannot be explained.
        """
        alike: list[float] = []
        names: list[str] = []
        # Weights depend only on the case's seed, and explaining does not advance the generator, so that all
        # explainers and images use the same copies.
        for name, model in randomised(case.model, order=self.order, layers=self.layers, weights=self.weights):
            names.append(name or "(root)")
            try:
                other = case.explain(model=model).heatmap()
            except (ExplainerRefused, ModelError) as error:
                raise MetricRefused(
                    f"the network randomised at {names[-1]!r} cannot be explained: {error.message}"
                ) from error
            alike.append(similarity(case.heat, other, self.similarity, absolute=self.absolute))
        if not alike:
            raise MetricRefused(f"model {case.model.name!r} has no parameters to randomise")
        depths = [(index + 1) / len(alike) for index in range(len(alike))]
        return Measurement(
            value=fmean(alike),
            curve=([0.0, *depths], [1.0, *alike]) if self.order == "cascading" else None,
            details={"modules": names, "similarities": alike},
        )
