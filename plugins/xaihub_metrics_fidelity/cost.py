"""The cost of an explanation, as recorded."""

from __future__ import annotations

from xaihub import Case, Measurement, Metric, MetricRefused


class CostForwards(Metric):
    """Forward passes plus backward passes, in rows per image."""

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
    """Wall-clock seconds per image, on the machine and in the batch that made the map."""

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
        raise MetricRefused(f"the explanation's record lacks {key}")
    return float(value)
