"""Merging runs into one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from xaihub.evaluation.config import Config
from xaihub.evaluation.store import RunStore


def merge(folders: Sequence[str | Path], output: str | Path) -> tuple[RunStore, int]:
    """Merge runs into a new one; duplicate results are kept once, conflicting results are hidden.

    Returns:
        The merged run, and the number of hidden scores, which reappear or are recomputed when the merged run is
        resumed.

    Raises:
        OutputError: A run is missing or damaged, or the output exists or cannot be written.
    """
    with ExitStack() as opened:
        sources = [opened.enter_context(RunStore(folder)) for folder in folders]
        config = _joined([source.config for source in sources])
        merged = RunStore(output, create=True)
        try:
            with merged.writing():
                aside = merged.absorb(*sources)
                merged.set_config(config)
        except BaseException:
            merged.close()
            raise
    return merged, aside


def _joined(configs: Sequence[Config]) -> Config:
    """Return the first configuration with the lists of all, so that a merged run can be resumed."""
    first = msgspec.structs.replace(configs[0])
    for name in ("images", "models", "explainers", "metrics"):
        items = [item for config in configs for item in getattr(config, name)]
        setattr(first, name, [item for place, item in enumerate(items) if item not in items[:place]])
    return first
