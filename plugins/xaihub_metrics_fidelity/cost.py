"""What an explanation cost to make, as its record says."""

from __future__ import annotations

from xaihub import Case, Measurement, Metric, MetricRefused


class CostForwards(Metric):
    """Rows that went forward through the network, plus rows that went backward, for one image."""

    def score(self, case: Case) -> Measurement:
        """Return the sum.

        Raises:
            MetricRefused: The record lacks the counts.
        """
        forward_passes, backward_passes = _recorded(case, "forward_passes"), _recorded(case, "backward_passes")
        return Measurement(
            value=forward_passes + backward_passes,
            details={"forward_passes": forward_passes, "backward_passes": backward_passes},
        )


class CostSeconds(Metric):
    """Wall-clock seconds for one image, on the machine and in the batch in which the map was made."""

    def score(self, case: Case) -> Measurement:
        """Return the seconds.

        Raises:
            MetricRefused: The record lacks them.
        """
        device = str(case.explanation.metadata.get("device", "unknown"))
        return Measurement(value=_recorded(case, "seconds"), details={"device": device})


def _recorded(case: Case, key: str) -> float:
    value = case.explanation.metadata.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise MetricRefused(f"the explanation's record does not say how many {key} it took")
    return float(value)
