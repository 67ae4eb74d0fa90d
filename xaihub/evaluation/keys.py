"""The keys of a model's explanations: what each depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from xaihub.evaluation.config import Config
from xaihub.evaluation.dependence import code, with_files
from xaihub.evaluation.results import Key
from xaihub.explainers.explainer import Explainer
from xaihub.hub import Hub
from xaihub.models.model import Model
from xaihub.records import canonical


class Keys:
    """The keys of what the explainers of a plan make of one model."""

    def __init__(self, hub: Hub, config: Config, model: Model, explainers: Sequence[Explainer]) -> None:
        """Read the files that parameters name, once."""
        self._config = config
        self._controls = {spec.name for spec in hub.explainers if "control" in spec.tags}
        self._made = [(explainer, with_files(explainer.settings), code(hub, explainer)) for explainer in explainers]
        self.model, self._weights, self._structure = model, model.weights_hash, model.structure_hash
        self._digests = lru_cache(20_000)(self._digest_of)

    def key(self, explainer: int, sha256: str, label: int | None) -> Key:
        """Return the key of an explanation: the number of the explainer, and the checksum and label of the image."""
        method, parameters, version = self._made[explainer]
        return Key(
            image=sha256,
            model=self.model.name,
            weights=self._weights,
            structure=self._structure,
            preprocessing=self.model.preprocessing.description,
            explainer=method.name,
            parameters=parameters,
            target=str(self._config.target if label is None else label),
            seed=self._config.seed,
            code=version,
            control=method.name in self._controls,
            page=self._config.page or 1,
        )

    def parameters(self, explainer: int) -> str:
        """Return the parameters of an explainer as they are stored."""
        return canonical(self._made[explainer][1])

    def digest(self, explainer: int, sha256: str, label: int | None) -> str:
        """Return the digest of that key."""
        return self._digests(explainer, label)(sha256)

    def _digest_of(self, explainer: int, label: int | None) -> Callable[[str], str]:
        return self.key(explainer, "", label).digests()
