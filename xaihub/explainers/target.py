"""Targets of explanations: a class, the n-th best class, or one class against another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xaihub.errors import InputError, ParameterError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


_VERSUS = re.compile(r"\s+(?:vs\.?|versus)\s+", re.IGNORECASE)
_RANK = re.compile(r"top[- ]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is explained, before the model has been run.

    Attributes:
        index: The class, or None for the class of rank `rank` in each sample.
        rank: 0 for the best class, 1 for the second best, and so on; used when `index` is None.
        against: A second target that is subtracted from the first (contrastive explanation).
    """

    index: int | None = None
    rank: int = 0
    against: Target | None = None

    @classmethod
    def parse(cls, text: str | int | Target | None, classes: Sequence[str] = ()) -> Target:
        """Read a target from an index, a class name, a rank such as "top2", or a contrast "a vs b".

        Raises:
            InputError: No class has that name, or several have; the hint lists indices or similar names.
            ParameterError: The index or the rank is out of range.
        """
        if text is None:
            return cls()
        if isinstance(text, Target):
            return text
        parts = _VERSUS.split(str(text).strip())
        if len(parts) > 2:
            raise ParameterError(f"target {text!r} compares more than two classes", hint="write 'a vs b'")
        # A class name may be a number that is another class's index; the name takes precedence.
        names = [] if isinstance(text, int) else [name.strip() for name in classes]
        first = cls._parse_one(parts[0], classes, names)
        if len(parts) == 1:
            return first
        return cls(index=first.index, rank=first.rank, against=cls._parse_one(parts[1], classes, names))

    @classmethod
    def _parse_one(cls, text: str, classes: Sequence[str], names: Sequence[str]) -> Target:
        text = text.strip()
        rank = _RANK.fullmatch(text)
        if rank or text.lower() == "predicted":
            position = int(rank.group(1)) if rank else 1
            if position < 1 or (classes and position > len(classes)):
                raise ParameterError(f"rank {text!r} is out of range", hint=f"top1 to top{len(classes) or 'K'}")
            return cls(rank=position - 1)
        if re.fullmatch(r"-?\d+", text):
            index = names.index(text) if names.count(text) == 1 else int(text)
            if index < 0 or (classes and index >= len(classes)):
                raise ParameterError(f"class {index} is out of range", hint=f"the model has {len(classes)} classes")
            return cls(index=index)
        return cls(index=_find_class(text, classes))

    def resolve(self, logits: Tensor) -> ResolvedTarget:
        """Determine the class of each sample from its (B, K) logits.

        Raises:
            ParameterError: A class or a rank is not among the K outputs, or a contrast compares a class with itself.
        """
        index = self._indices(logits)
        if self.against is None:
            return ResolvedTarget(index=index)
        against = self.against._indices(logits)
        if bool((index == against).any()):
            same = int(index[index == against][0])
            raise ParameterError(f"the target compares class {same} with itself", hint="give two different classes")
        return ResolvedTarget(index=index, against=against)

    def _indices(self, logits: Tensor) -> Tensor:
        outputs = logits.shape[1]
        wanted = self.rank if self.index is None else self.index
        if not 0 <= wanted < outputs:
            what = "rank" if self.index is None else "class"
            raise ParameterError(f"{what} {wanted} is out of range", hint=f"the model has {outputs} outputs")
        if self.index is not None:
            return logits.new_full((len(logits),), self.index).long()
        return logits.topk(self.rank + 1, dim=1).indices[:, -1]


@dataclass(frozen=True, kw_only=True)
class ResolvedTarget:
    """The class of each sample, and the score of outputs for it.

    Attributes:
        index: (B,) class indices.
        against: (B,) class indices that are subtracted, or None.
    """

    index: Tensor
    against: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.index)

    def __getitem__(self, rows: slice) -> ResolvedTarget:
        """Return the targets of some samples."""
        return ResolvedTarget(index=self.index[rows], against=None if self.against is None else self.against[rows])

    def fixed(self) -> Target:
        """Return the classes of the first sample as a target that no longer depends on the outputs."""
        against = None if self.against is None else Target(index=int(self.against[0]))
        return Target(index=int(self.index[0]), against=against)

    def score(self, logits: Tensor, *, output: str = "logit") -> Tensor:
        """Pick each sample's score from its (B, K) logits: (B,). A contrast is the difference of two scores.

        A single target scores any number of rows, as a perturbation method needs: (N, K) -> (N,). See `class_scores`
        for `output`.
        """
        scores = class_scores(logits, output)
        picked = _pick(scores, self.index)
        return picked if self.against is None else picked - _pick(scores, self.against)

    def ahead(self, outputs: Tensor) -> Tensor:
        """Return for (N, K) outputs the number of other classes that score at least as high as the target's: (N,)."""
        return (outputs >= _pick(outputs, self.index).unsqueeze(1)).sum(1) - 1

    def kept(self, outputs: Tensor, whole: Tensor) -> Tensor:
        """Return whether (N, K) outputs for masked images keep the decision of the (1, K) outputs for the whole: (N,).

        A class is kept if no more classes are ahead of it, a contrast if its first class leads.
        """
        if self.against is not None:
            return self.score(outputs) > 0
        return self.ahead(outputs) <= self.ahead(whole.to(outputs))


class LateTarget(ResolvedTarget):
    """A target determined by the first forward pass over the unmodified inputs, so that no extra pass is needed for it.

    Attributes:
        logits: (B, K) class scores of that pass; None before it.
    """

    logits: Tensor | None = None

    def __init__(self, wanted: Target) -> None:
        object.__setattr__(self, "_wanted", wanted)  # the base class is frozen

    def see(self, logits: Tensor) -> None:
        """Determine the class of each row from (B, K) logits; only the first call has an effect."""
        if self.logits is None:
            found = self._wanted.resolve(logits)  # type: ignore[attr-defined]
            for name, value in (("logits", logits), ("index", found.index), ("against", found.against)):
                object.__setattr__(self, name, value)


def class_scores(logits: Tensor, output: str) -> Tensor:
    """Return the (N, K) scores of all classes from (N, K) logits: "logit", "probability" or "log_probability".

    Raises:
        ParameterError: `output` is none of these.
    """
    if output == "logit":
        return logits
    if output == "probability":
        return logits.softmax(1)
    if output == "log_probability":
        return logits.log_softmax(1)
    raise ParameterError(f"output cannot be {output!r}", hint="use logit, probability or log_probability")


def _pick(outputs: Tensor, index: Tensor) -> Tensor:
    index = index.to(outputs.device)
    if len(index) == 1:
        return outputs[:, index[0]]
    return outputs.gather(1, index.unsqueeze(1)).squeeze(1)


def _find_class(text: str, classes: Sequence[str]) -> int:
    wanted = text.casefold()
    names = [[part.strip().casefold() for part in name.split(",")] for name in classes]
    hits = [i for i, parts in enumerate(names) if wanted == parts[0]] or [
        i for i, parts in enumerate(names) if wanted in parts or wanted == classes[i].casefold()
    ]
    if len(hits) == 1:
        return hits[0]
    if hits:
        listed = ", ".join(f"{i} ({classes[i]})" for i in hits[:6])
        raise InputError(f"{len(hits)} classes are named {text!r}", hint=f"give an index: {listed}")
    if not classes:
        raise InputError(f"the model has no class names, so {text!r} cannot be found", hint="give the class index")
    every = {part.strip() for name in classes for part in name.split(",")}
    raise InputError(f"no class is named {text!r}", hint=did_you_mean(text, every) or "give the class index")
