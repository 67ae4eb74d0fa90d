"""Targets of explanations: a class, the n-th best class, one class against another, several labels, or a value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xaihub.errors import InputError, ParameterError, did_you_mean
from xaihub.models.outputs import Outputs, class_scores

_VERSUS = re.compile(r"\s+(?:vs\.?|versus)\s+", re.IGNORECASE)
TWO = "give two different classes"
SAME = 1e-6  # relative difference of float32 scores that is rounding
_PLUS = re.compile(r"\s+\+\s+")
_SIDES = ("negative", "positive")
_RANK = re.compile(r"top[- ]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is explained, before the model has been run.

    Attributes:
        index: The class, or None for the class of rank `rank` in each sample.
        rank: 0 for the best class, 1 for the second best, and so on; used when `index` is None.
        against: A second target that is subtracted from the first (contrastive explanation).
        also: Further classes; the score is then the mean of theirs and that of `index`.
        down: Explain what lowers the value instead of what raises it.
    """

    index: int | None = None
    rank: int = 0
    against: Target | None = None
    also: tuple[int, ...] = ()
    down: bool = False

    @classmethod
    def parse(
        cls,
        text: str | int | Target | None,
        classes: Sequence[str] = (),
        outputs: Outputs = Outputs(),  # noqa: B008 - it is immutable
    ) -> Target:
        """Read a target from text, for a model with these class names and outputs.

        It is an index, a class name, a rank such as "top2", a contrast "a vs b" or several classes "a + b". Binary
        outputs have the classes "positive" and "negative" as well as their names; a value can be followed by "up" or
        "down".

        Raises:
            InputError: No class has that name, or several have; the hint lists indices or similar names.
            ParameterError: The index or the rank is out of range, or the outputs have no such target.
        """
        if text is None:
            text = outputs.default or None
        if text is None:
            return cls()
        if isinstance(text, Target):
            return text
        # A class name may be a number that is another class's index; the name takes precedence.
        names = [] if isinstance(text, int) else [name.strip() for name in classes]
        sides = _sides(str(text).strip(), classes)
        first, *others = (cls._parse_side(side, classes, names, outputs) for side in sides)
        if not others:
            return first
        second = others[0]
        if first == second and first.index is not None:
            raise ParameterError(f"the target compares class {first.index} with itself", hint=TWO)
        if any(side.also or side.down for side in (first, second)):
            raise ParameterError(f"the target {str(text)!r} is not a contrast of two classes or values")
        return replace(first, against=second)

    @classmethod
    def _parse_side(cls, text: str, classes: Sequence[str], names: Sequence[str], outputs: Outputs) -> Target:
        parts = [text] if _hits(text, classes) else _PLUS.split(text)
        first, *others = (cls._parse_one(part, classes, names, outputs) for part in parts)
        if not others:
            return first
        indices = [one.index for one in (first, *others) if one.index is not None and not one.down]
        if len({*indices}) != len(parts):
            raise ParameterError(f"the target {text.strip()!r} is not several different classes", hint="write 'a + b'")
        return replace(first, also=tuple(indices[1:]))

    @classmethod
    def _parse_one(cls, text: str, classes: Sequence[str], names: Sequence[str], outputs: Outputs) -> Target:
        text = text.strip()
        if outputs.kind == "binary" and not _hits(text, classes) and text.lower() in _SIDES:
            return cls(index=_SIDES.index(text.lower()))
        if not outputs.classify and not _hits(text, classes):
            named, _, way = text.rpartition(" ")
            if text.lower() in ("up", "down"):
                named, way = "value", text
            if way.lower() in ("up", "down"):
                return replace(cls._parse_one(named, classes, names, outputs), down=way.lower() == "down")
            if text.lower() == "value":
                return cls()
        rank = _RANK.fullmatch(text)
        if rank or text.lower() == "predicted":
            position = int(rank.group(1)) if rank else 1
            if not outputs.classify:
                raise ParameterError(f"{text!r} is a rank of classes, but the outputs are values ({outputs.kind})")
            if position < 1 or (classes and position > len(classes)):
                raise ParameterError(f"rank {text!r} is out of range", hint=f"top1 to top{len(classes) or 'K'}")
            return cls(rank=position - 1)
        if re.fullmatch(r"-?\d+", text):
            index = names.index(text) if names.count(text) == 1 else int(text)
            if index < 0 or (classes and index >= len(classes)):
                raise ParameterError(f"class {index} is out of range", hint=f"the model has {len(classes)} classes")
            return cls(index=index)
        return cls(index=_find_class(text, classes))

    def resolve(self, logits: Tensor, outputs: Outputs = Outputs()) -> ResolvedTarget:  # noqa: B008 - it is immutable
        """Determine the class of each sample from its (B, K) outputs.

        Raises:
            ParameterError: A class or a rank is not among the K outputs, a contrast compares a class with itself, or
                it is open which of several values is meant.
        """
        index = self._indices(logits, outputs)
        if self.against is None:
            also = [Target(index=one)._indices(logits, outputs) for one in self.also]
            return ResolvedTarget(index=index, also=tuple(also), down=self.down, outputs=outputs)
        against = self.against._indices(logits, outputs)
        if bool((index == against).any()):
            same = int(index[index == against][0])
            raise ParameterError(f"the target compares class {same} with itself", hint=TWO)
        return ResolvedTarget(index=index, against=against, outputs=outputs)

    def _indices(self, logits: Tensor, outputs: Outputs) -> Tensor:
        count = logits.shape[1]
        if self.index is None and outputs.kind == "embedding":
            raise ParameterError(
                f"the model returns an embedding of {count} features, not class scores",
                hint="compare it with an image: --like FILE; or name a feature by its index",
            )
        if self.index is None and outputs.kind == "regression" and count > 1:
            raise ParameterError(f"the model returns {count} values", hint="name one of them with --target")
        wanted = self.rank if self.index is None else self.index
        if not 0 <= wanted < count:
            what = "rank" if self.index is None else "class"
            raise ParameterError(f"{what} {wanted} is out of range", hint=f"the model has {count} outputs")
        if self.index is not None or not outputs.classify:
            return logits.new_full((len(logits),), wanted).long()
        return logits.topk(self.rank + 1, dim=1).indices[:, -1]


@dataclass(frozen=True, kw_only=True)
class ResolvedTarget:
    """The class of each sample, and the score of outputs for it.

    Attributes:
        index: (B,) class indices.
        against: (B,) class indices that are subtracted, or None.
        also: Further (B,) class indices; the score is the mean over all.
        down: The score is minus the value.
        outputs: The meaning of the outputs.
        seen: The range of the scores of each sample's masked images, if it is noted.
    """

    index: Tensor
    against: Tensor | None = None
    also: tuple[Tensor, ...] = ()
    down: bool = False
    outputs: Outputs = Outputs()  # noqa: RUF009 - it is immutable
    seen: Seen | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.index)

    def __getitem__(self, rows: slice) -> ResolvedTarget:
        """Return the targets of some samples."""
        part = self.of(*(part[rows] for part in self.parts))
        return part if self.seen is None else replace(part, seen=self.seen[rows])

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All (B,) class indices that the score depends on."""
        return (self.index, *self.also, *(() if self.against is None else (self.against,)))

    def of(self, index: Tensor, *others: Tensor) -> ResolvedTarget:
        """Return a target of the same form for other samples, from their indices in the order of `parts`."""
        return ResolvedTarget(
            index=index,
            against=None if self.against is None else others[-1],
            also=others if self.against is None else (),
            down=self.down,
            outputs=self.outputs,
        )

    def fixed(self) -> Target:
        """Return the classes of the first sample as a target that no longer depends on the outputs."""
        against = None if self.against is None else Target(index=int(self.against[0]))
        also = tuple(int(one[0]) for one in self.also)
        return Target(index=int(self.index[0]), against=against, also=also, down=self.down)

    def score(self, logits: Tensor, *, output: str = "logit") -> Tensor:
        """Score (B, K) outputs for each sample: (B,). A contrast is the difference of two scores.

        A single target scores any number of rows, as a perturbation method needs: (N, K) -> (N,). See `class_scores`
        for `output`.
        """
        scores = class_scores(logits, output, self.outputs)
        picked = _pick(scores, self.index)
        if self.also:
            picked = torch.stack([picked, *(_pick(scores, one) for one in self.also)]).mean(0)
        if self.against is not None:
            picked = picked - _pick(scores, self.against)
        scores = -picked if self.down else picked
        if self.seen is not None and not scores.requires_grad:  # masked images need no gradient
            self.seen.note(scores, output)
        return scores

    def noting(self, rows: int) -> ResolvedTarget:
        """Return the target of `rows` samples, which notes the scores of masked images."""
        return replace(self, seen=Seen.nothing(rows))

    def constant(self, logits: Tensor) -> list[str]:
        """Return for each sample the score that its image, with (B, K) logits, and all masked images share, else ""."""
        if self.seen is None:
            return [""] * len(self)
        for output in tuple(self.seen.scales):
            self.score(logits, output=output)
        return self.seen.constant()

    def ahead(self, outputs: Tensor) -> Tensor:
        """Return for (N, K) outputs the number of other classes that score at least as high as the target's: (N,)."""
        return (outputs >= _pick(outputs, self.index).unsqueeze(1)).sum(1) - 1

    @property
    def undecided(self) -> str:
        """The reason why the outputs make no decision about the target; "" if they do."""
        if self.against is None and not self.outputs.classify:
            return f"the outputs are values ({self.outputs.kind}), which make no decision that could be kept or lost"
        if self.also and self.outputs.exclusive:
            return "the target is several classes, of which an image has only one"
        return ""

    def kept(self, outputs: Tensor, whole: Tensor) -> Tensor:
        """Return whether (N, K) outputs for masked images keep the decision of the (1, K) outputs for the whole: (N,).

        A class is kept if no more classes are ahead of it, labels if all have positive logits, a contrast if its first
        class leads.

        Raises:
            ParameterError: The outputs make no decision, see `undecided`.
        """
        if self.undecided:
            raise ParameterError(self.undecided)
        if self.against is not None:
            return self.score(outputs) > 0
        if not self.outputs.exclusive:
            return torch.stack([_pick(outputs, one) for one in self.parts]).min(0).values > 0
        return self.ahead(outputs) <= self.ahead(whole.to(outputs))


@dataclass(frozen=True)
class Seen:
    """The scores that were computed for each of B samples, without those that are differentiated.

    Attributes:
        range: (B, 3) lowest score, highest score and number of scores.
        scales: The scales of the scores.
    """

    range: Tensor
    scales: set[str]

    @classmethod
    def nothing(cls, rows: int) -> Seen:
        """Return the record of `rows` samples without any score."""
        return cls(torch.tensor([[torch.inf, -torch.inf, 0.0]], dtype=torch.float64).repeat(rows, 1), set())

    def __getitem__(self, rows: slice) -> Seen:
        """Return a view of some samples."""
        return Seen(self.range[rows], self.scales)

    def note(self, scores: Tensor, scale: str) -> None:
        """Add (n,) scores of the only sample, or one score for each."""
        self.scales.add(scale)
        scores = scores.detach().double().cpu()
        groups = scores[None] if len(self.range) == 1 else scores[:, None]
        self.range[:, 0] = torch.minimum(self.range[:, 0], groups.amin(1))
        self.range[:, 1] = torch.maximum(self.range[:, 1], groups.amax(1))
        self.range[:, 2] += groups.shape[1]

    def constant(self) -> list[str]:
        """Return the score of each sample of which at least three are equal, else ""."""
        return [
            f"{low:.4g}" if count > 2 and high - low <= SAME * max(abs(low), abs(high)) else ""
            for low, high, count in self.range.tolist()
        ]


class LateTarget(ResolvedTarget):
    """A target determined by the first forward pass over the unmodified inputs, so that no extra pass is needed for it.

    Attributes:
        logits: (B, K) class scores of that pass; None before it.
    """

    logits: Tensor | None = None

    def __init__(self, wanted: Target, outputs: Outputs) -> None:
        object.__setattr__(self, "_wanted", wanted)  # the base class is frozen
        object.__setattr__(self, "outputs", outputs)

    def noting(self, rows: int) -> LateTarget:
        """Note the scores of `rows` samples."""
        object.__setattr__(self, "seen", Seen.nothing(rows))
        return self

    def see(self, logits: Tensor) -> None:
        """Determine the class of each row from (B, K) logits; only the first call has an effect."""
        if self.logits is None:
            found = self._wanted.resolve(logits, self.outputs)  # type: ignore[attr-defined]
            for name, value in {**vars(found), "seen": self.seen, "logits": logits}.items():
                object.__setattr__(self, name, value)


def _pick(outputs: Tensor, index: Tensor) -> Tensor:
    index = index.to(outputs.device)
    if len(index) == 1:
        return outputs[:, index[0]]
    return outputs.gather(1, index.unsqueeze(1)).squeeze(1)


def _sides(text: str, classes: Sequence[str]) -> list[str]:
    """Split a contrast "a vs b" into its sides; a class name may contain "vs" itself, and takes precedence."""
    cuts = [] if _hits(text, classes) else list(_VERSUS.finditer(text))
    splits = [[text[: cut.start()], text[cut.end() :]] for cut in cuts]
    if len(splits) > 1:
        splits = [sides for sides in splits if all(not _VERSUS.search(side) or _hits(side, classes) for side in sides)]
        if len(splits) != 1:
            problem = "can be read as several contrasts" if splits else "compares more than two classes"
            raise ParameterError(f"target {text!r} {problem}", hint="write 'a vs b', with class indices if need be")
    return splits[0] if splits else [text]


def _hits(text: str, classes: Sequence[str]) -> list[int]:
    """Return the classes whose name, or one of whose comma-separated synonyms, is `text`; names come first."""
    wanted = text.strip().casefold()
    names = [[part.strip().casefold() for part in name.split(",")] for name in classes]
    return [i for i, parts in enumerate(names) if wanted == parts[0]] or [
        i for i, parts in enumerate(names) if wanted in parts or wanted == classes[i].strip().casefold()
    ]


def _find_class(text: str, classes: Sequence[str]) -> int:
    hits = _hits(text, classes)
    if len(hits) == 1:
        return hits[0]
    if hits:
        listed = ", ".join(f"{i} ({classes[i]})" for i in hits[:6])
        raise InputError(f"{len(hits)} classes are named {text!r}", hint=f"give an index: {listed}")
    if not classes:
        raise InputError(f"the model has no class names, so {text!r} cannot be found", hint="give the class index")
    every = {part.strip() for name in classes for part in name.split(",")}
    raise InputError(f"no class is named {text!r}", hint=did_you_mean(text, every) or "give the class index")
