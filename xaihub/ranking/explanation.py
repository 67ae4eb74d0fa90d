"""Global explanations: rankings of a model's features with everything needed to reproduce them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import torch
from safetensors.torch import save as pack_tensors
from torch import Tensor

from xaihub.errors import OutputError, ParameterError
from xaihub.files import decoding, read_file, read_packed, write_file
from xaihub.images.marking import marked_png
from xaihub.ranking.statistics import half_width, order_of
from xaihub.records import plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


FORMAT = 1
KIND = "global explanation"
LARGEST = 2**24  # bytes of a JSON file
BAR, FAINT = "#35608d", "#8a8a90"


class _Known(msgspec.Struct):
    model: str = ""
    warnings: list[str] = []


class _Record(msgspec.Struct):
    """What is read of a record; a JSON file holds the weights as well."""

    method: str
    feature: str
    names: tuple[str, ...]
    grid: tuple[Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=1)]] | None
    metadata: _Known
    runs: list[list[float]] | None = None
    history: list[list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class RankedFeature:
    """One feature of a ranking.

    Attributes:
        rank: Its rank, from 1.
        index: Its index among the features.
        name: Its name.
        weight: The mean weight over runs.
        low: The lower end of the 95 % interval of the mean, or None for a single run.
        high: The upper end of that interval.
    """

    rank: int
    index: int
    name: str
    weight: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class GlobalExplanation:
    """A ranking of a model's features, from one or several runs.

    Attributes:
        runs: (S, d) float64 weights of S runs (seeds); larger means more important.
        names: (d) names of the features.
        feature: The kind of feature, in words: "channel", "column", "position".
        method: The name of the global explainer.
        history: (epochs, d) weights after each epoch of training, or None.
        grid: (rows, columns) if the features are cells of a grid over the image.
        metadata: The provenance: model, weights, parameters, images, cost, warnings, versions.
    """

    runs: Tensor
    names: tuple[str, ...]
    feature: str
    method: str
    history: Tensor | None = None
    grid: tuple[int, int] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Normalise the weights and validate their shapes.

        Raises:
            ParameterError: The weights are not finite (S, d) numbers, or the names, history or grid do not match them.
        """
        runs = self.runs.detach().cpu().double()
        object.__setattr__(self, "runs", runs.unsqueeze(0) if runs.ndim == 1 else runs)
        object.__setattr__(self, "names", tuple(self.names))
        if self.runs.ndim != 2 or not self.runs.numel() or not bool(self.runs.isfinite().all()):
            raise ParameterError(f"weights of shape {tuple(runs.shape)} are not finite (S, d) numbers")
        width = self.runs.shape[1]
        if len(self.names) != width:
            raise ParameterError(f"{width} features have {len(self.names)} names")
        if self.history is not None:
            object.__setattr__(self, "history", self.history.detach().cpu().double())
            if self.history.ndim != 2 or self.history.shape[1] != width:
                raise ParameterError(f"a history of shape {tuple(self.history.shape)} does not have {width} columns")
        if self.grid is not None and self.grid[0] * self.grid[1] != width:
            raise ParameterError(f"a grid of {self.grid[0]}x{self.grid[1]} cells does not have {width} features")

    def __repr__(self) -> str:
        """One line: the claim and the shape of the weights."""
        return f"<GlobalExplanation {self.claim!r}, weights {tuple(self.runs.shape)}>"

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self.names)

    @property
    def weights(self) -> Tensor:
        """(d,) mean weights over the runs."""
        return self.runs.mean(0)

    @property
    def order(self) -> Tensor:
        """(d,) feature indices, the most important first; ties are ordered by index."""
        return order_of(self.weights)

    @cached_property
    def ranking(self) -> list[RankedFeature]:
        """Every feature, the most important first."""
        weights = self.weights
        half = half_width(self.runs) if len(self.runs) > 1 else None
        return [
            RankedFeature(
                rank=place + 1,
                index=index,
                name=self.names[index],
                weight=float(weights[index]),
                low=None if half is None else float(weights[index] - half[index]),
                high=None if half is None else float(weights[index] + half[index]),
            )
            for place, index in enumerate(self.order.tolist())
        ]

    @property
    def warnings(self) -> list[str]:
        """Warnings for the reader of the ranking."""
        return list(self.metadata.get("warnings", []))

    @property
    def claim(self) -> str:
        """A description of the ranking in words."""
        runs = "" if len(self.runs) == 1 else f", {len(self.runs)} runs"
        model = self.metadata.get("model", "")
        return f"{self.method}: {self.feature} importance{f' in {model}' if model else ''} ({len(self)} features{runs})"

    @classmethod
    def combine(cls, parts: Sequence[GlobalExplanation]) -> GlobalExplanation:
        """Combine rankings of the same features, for example of models trained with different seeds, as runs of one.

        Raises:
            ParameterError: The rankings are of different features or methods, or there is none.
        """
        if not parts:
            raise ParameterError("there is no ranking to combine")
        first = parts[0]
        for part in parts[1:]:
            if (part.names, part.feature, part.method) != (first.names, first.feature, first.method):
                raise ParameterError(
                    f"rankings of different features or methods cannot be combined: {first.claim}; {part.claim}",
                    hint="combine one method's rankings of one architecture",
                )
        return cls(
            runs=torch.cat([part.runs for part in parts]),
            names=first.names,
            feature=first.feature,
            method=first.method,
            grid=first.grid,
            metadata={
                **{key: first.metadata[key] for key in ("model", "layer", "versions") if key in first.metadata},
                "parts": [dict(part.metadata) for part in parts],
                "warnings": list(dict.fromkeys(warning for part in parts for warning in part.warnings)),
            },
        )

    def table(self, top: int | None = None) -> list[dict[str, Any]]:
        """Return the first `top` features as records: rank, index, name, weight, low, high, times_uniform.

        `times_uniform` is the weight divided by the mean weight: 1 for a feature of average importance.
        """
        uniform = float(self.weights.mean())
        return [
            {**asdict(item), "times_uniform": item.weight / uniform if uniform else None} for item in self.ranking[:top]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types, with the full ranking."""
        return {
            **self._record(),
            "ranking": self.table(),
            "runs": self.runs.tolist(),
            "history": None if self.history is None else self.history.tolist(),
        }

    def _record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": KIND,
            "method": self.method,
            "feature": self.feature,
            "names": list(self.names),
            "grid": None if self.grid is None else list(self.grid),
            "metadata": plain(self.metadata),
        }

    def save(self, path: str | Path) -> Path:
        """Write one file and return its path: by its suffix JSON, HTML, PNG or CSV, otherwise safetensors.

        `load` reads JSON and safetensors, which have the whole record.

        Raises:
            OutputError: The file cannot be written.
        """
        file = Path(path)
        if file.suffix == ".png":
            return self.save_png(file)
        if file.suffix in (".html", ".csv"):
            return write_file(file, self.html() if file.suffix == ".html" else self.to_frame().to_csv(index=False))
        if file.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            return write_file(file, text)
        file = file if file.suffix == ".safetensors" else file.with_name(f"{file.name}.safetensors")
        tensors = {"runs": self.runs.contiguous()}
        if self.history is not None:
            tensors["history"] = self.history.contiguous()
        packed = pack_tensors(tensors, metadata={"record": json.dumps(self._record(), allow_nan=False)})
        return write_file(file, packed)

    @classmethod
    def load(cls, path: str | Path) -> GlobalExplanation:
        """Read a file that `save` wrote.

        Raises:
            OutputError: The file is missing or damaged, or has another format.
        """
        file = Path(path)
        if not file.suffix:
            file = file.with_name(f"{file.name}.safetensors")
        damaged = OutputError(f"{str(file)!r} is damaged or not a saved global explanation")
        if file.suffix == ".json":
            tensors, text = None, read_file(file, what="file", error=OutputError, limit=LARGEST)
        else:
            tensors, metadata = read_packed(file, what="file", refusal=damaged)
            text = metadata.get("record", "").encode()
        with decoding(damaged):
            found = json.loads(text)
            if (found["format"], found["kind"]) != (FORMAT, KIND):
                raise OutputError(f"{str(file)!r} is not a global explanation of this version of xaihub")
            return cls._of(found, tensors)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> GlobalExplanation:
        """Rebuild a ranking from the result of `to_dict`.

        Raises:
            OutputError: It is incomplete, or has wrong types.
        """
        with decoding(OutputError("the record of a global explanation is damaged")):
            return cls._of(record, None)

    @classmethod
    def _of(cls, found: Mapping[str, Any], tensors: Mapping[str, Tensor] | None) -> GlobalExplanation:
        record = msgspec.convert(found, type=_Record)
        return cls(
            runs=_tensor(record.runs) if tensors is None else tensors["runs"],
            names=record.names,
            feature=record.feature,
            method=record.method,
            history=_tensor(record.history) if tensors is None else tensors.get("history"),
            grid=record.grid,
            metadata=found["metadata"],
        )

    def plot(self, *, top: int = 20) -> Figure:
        """Return a matplotlib figure: the `top` features as bars, and all weights sorted, or as a map over the grid."""
        from matplotlib.figure import Figure

        shown = self.ranking[:top]
        figure = Figure(figsize=(10, max(3.0, 1.2 + 0.27 * len(shown))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        first = self.order[:top]
        errors = half_width(self.runs)[first].numpy() if len(self.runs) > 1 else None
        style = {"elinewidth": 1, "capsize": 2, "ecolor": "black"}
        left.barh(range(len(shown)), self.weights[first].numpy(), color=BAR, xerr=errors, error_kw=style)
        left.set_yticks(range(len(shown)), [_short(item.name, 34) for item in shown], fontsize=8)
        left.invert_yaxis()
        uniform = float(self.weights.mean())
        left.axvline(uniform, color=FAINT, linestyle="--", linewidth=1)
        left.set_xlabel("weight (dashed: the mean over all features)", fontsize=8)
        if self.grid is not None:
            image = right.imshow(self.weights.reshape(self.grid).numpy(), cmap="inferno")
            right.set_title("by position in the image", fontsize=9)
            figure.colorbar(image, ax=right, shrink=0.8)
        else:
            line = self.weights[self.order].numpy()
            right.plot(range(1, len(line) + 1), line, color=BAR)
            right.axhline(uniform, color=FAINT, linestyle="--", linewidth=1)
            right.set_xlabel(f"rank (of {len(line)})", fontsize=8)
            right.set_title("all weights, sorted", fontsize=9)
        for axes in (left, right):
            axes.tick_params(labelsize=8)
        figure.suptitle(_short(self.claim, 110), fontsize=10)
        return figure

    def to_frame(self) -> pd.DataFrame:
        """Return the ranking as a pandas table; `table` documents the columns."""
        import pandas as pd

        return pd.DataFrame(self.table())

    def html(self) -> str:
        """Return a self-contained HTML page: the figure of `plot`, the sortable ranking, and where it comes from."""
        from xaihub.explainers.page.document import data_uri, document
        from xaihub.explainers.page.provenance import group, provenance

        rows, columns = self.table(), ["rank", "name", "weight", "low", "high", "times_uniform"]
        table = {
            "title": "Ranking",
            "note": "low and high: 95 % interval of the mean over runs; times_uniform: weight over the mean weight",
            "columns": columns,
            "kinds": ["text" if name == "name" else "number" for name in columns],
            "rows": [[row[name] for name in columns] for row in rows],
        }
        records = [self.metadata, *self.metadata.get("parts", [])]
        return document(
            self.claim,
            findings=self.warnings,
            figures=[{"source": data_uri(self._png(20), "png"), "text": f"chart of the ranking of {self.claim}"}],
            tables=[table],
            facts=[group("Record", [(k, str(v)) for k, v in self.metadata.items() if isinstance(v, (str, int, float))]),
                   *provenance(record for record in records if "versions" in record)],
        )  # fmt: skip

    def _repr_html_(self) -> str:
        from xaihub.explainers.page.document import framed

        return framed(self.html())

    def _png(self, top: int) -> bytes:
        return marked_png(partial(self.plot(top=top).savefig, format="png", dpi=110))

    def save_png(self, path: str | Path, *, top: int = 20) -> Path:
        """Write the figure of `plot`; return the path.

        Raises:
            OutputError: The file cannot be written.
        """
        return write_file(path, self._png(top))


def _short(text: str, room: int) -> str:
    """Return a text for a chart, cut to the room; a dollar sign would begin a formula."""
    return (text if len(text) <= room else text[: room - 1] + "…").replace("$", r"\$")


def _tensor(rows: list[list[float]] | None) -> Any:
    return None if rows is None else torch.tensor(rows, dtype=torch.float64)
