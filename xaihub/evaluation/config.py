"""The configuration of a run: what a YAML file, the command line or a stored run asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from xaihub.errors import ParameterError
from xaihub.hub import DEFAULT_MODEL
from xaihub.params import Precision
from xaihub.records import YamlFile

DEFAULT_EXPLAINERS = ("gradcam", "integrated_gradients", "occlusion", "rise")
DEFAULT_METRICS = ("insertion", "deletion", "sparseness", "cost_forward_passes")


class Choice(msgspec.Struct, forbid_unknown_fields=True):
    """An explainer or a metric by name, with the parameters that differ from its defaults.

    Attributes:
        name: The name.
        params: The parameters.
        budget: Of an explainer: its own budget, in place of those of the plan.
    """

    name: str
    params: dict[str, Any] = {}
    budget: str | int | None = None


class Config(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of a run's configuration file.

    Attributes:
        images: Files, folders, globs, tables, shards and data sets; see `xaihub.evaluation.listing.listed`.
        output: The run's folder.
        models: Model names or card files.
        explainers: Names, or name and params.
        metrics: Names, or name and params.
        controls: Add the control explainers, which do not look at the model.
        target: The class to explain, see `Target.parse`; None is the predicted class.
        labels: A CSV file with the columns file and class_index; the labelled class is then explained.
        masks: A folder with one mask image (white on black) per image, with the same name.
        boxes: A CSV file with the columns file, left, top, right, bottom, in pixels of the image.
        outputs: What the models' outputs mean, see `Outputs.parse`; empty leaves it to cards and architectures.
        like: Images; the similarity to them is explained instead of a class.
        text: Texts, which are the classes of models with a text encoder.
        head: The head that scores what the models return, by name, or name and params.
        input: Settings of the models' preprocessing, as under `input` in a card.
        page: The page of image files with several pages or frames, from 1; None is the first.
        seed: Fixes every random choice.
        device: Where the models run.
        batch_size: Images per forward pass; None is the fastest.
        threads: CPU threads of forward passes; None is the fastest.
        backend: What runs forward passes without a graph, see `Runtime`.
        precision: Of the networks' layers.
        budget: Passes for each explanation (500), or seconds ("10s"), or a list of budgets, with each of which every
            explainer runs; explainers that cannot choose are unaffected and run once.
        limit: Use only the first N images.
        shard: Use only part I of N of them, as "I/N"; by their checksums, so that it does not matter where they are.
        maps: How maps are stored: "f32", "f16" or "none"; see `xaihub.evaluation.maps`.
    """

    images: Annotated[list[str], msgspec.Meta(min_length=1)]
    output: str = ""
    models: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [DEFAULT_MODEL])
    explainers: list[str | Choice] = msgspec.field(default_factory=lambda: list(DEFAULT_EXPLAINERS))
    metrics: list[str | Choice] = msgspec.field(default_factory=lambda: list(DEFAULT_METRICS))
    controls: bool = True
    target: str | int | None = None
    outputs: str = ""
    like: list[str] = []
    text: list[str] = []
    head: str | Choice = ""
    input: dict[str, Any] = {}
    page: Annotated[int, msgspec.Meta(ge=1)] | None = None
    labels: str | None = None
    masks: str | None = None
    boxes: str | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0
    device: str = "auto"
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    threads: Annotated[int, msgspec.Meta(ge=1)] | None = None
    backend: str = "auto"
    precision: Precision = "f32"
    budget: str | int | list[str | int] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    shard: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}/[0-9]{1,9}$")] | None = None
    maps: Literal["f32", "f16", "none"] = "f32"

    @property
    def budgets(self) -> list[str | int]:
        """The budgets, each once."""
        given = self.budget if isinstance(self.budget, list) else [self.budget]
        return list(dict.fromkeys(one for one in given if one is not None))


def read_config(path: str | Path) -> tuple[Config, YamlFile]:
    """Read a run's YAML file; also return the file, which knows the line of each key.

    Raises:
        ParameterError: A key is unknown or missing, or a value has the wrong type; names line and key.
    """
    file = YamlFile(path, what="config", error=ParameterError)
    return file.convert(Config, hint="docs/how-to/evaluate.md lists the keys"), file
