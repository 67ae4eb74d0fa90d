"""Options as typed records: each field of a dataclass is an option, whose type and default are the field's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import wraps
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem

from xaihub.api.parameters import Setting
from xaihub.cli._app import App
from xaihub.cli._output import reserved_stdout
from xaihub.errors import ParameterError
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL, DEFAULT_TIMEOUT
from xaihub.params import Precision

if TYPE_CHECKING:
    from xaihub.explainers.heat import Drawing

F = TypeVar("F", bound=Callable[..., Any])
# These come last in every help text, in this order.
LAST = (
    "settings", "budget", "seed", "device", "batch_size", "threads", "backend", "precision", "output", "terminal",
    "as_json", "quiet", "verbose",
)  # fmt: skip


class Opt:
    """What an option has in addition to a field's name, type and default."""

    def __init__(self, help: str, *flags: str, **settings: Any) -> None:
        """Take the help text, flags other than --name-of-the-field, and keyword arguments of `click.option`."""
        self.flags, self.settings = flags, {"help": help, **settings}


def option(name: str, kind: Any, default: Any, given: Opt) -> Callable[[F], F]:
    """Return click's decorator for an option called `name` of the type `kind`, such as `int | None`."""
    flags: Sequence[str] = given.flags or (f"--{name.replace('_', '-')}",)
    settings = {"show_default": default not in (None, (), MISSING) and default is not False, **given.settings}
    if default is not MISSING:
        settings["default"] = default
    inner = next(part for part in get_args(kind) or (kind,) if part is not NoneType)
    if Literal in (get_origin(kind), get_origin(inner)):
        settings["type"] = click.Choice(get_args(kind if get_origin(kind) is Literal else inner))
    elif kind is bool:
        settings["is_flag"] = True
    elif inner is bool:
        flags = (f"{flags[0]}/--no-{flags[0][2:]}",)
    else:
        settings["multiple"] = get_origin(kind) is tuple
        settings.setdefault("type", str if inner is Setting else inner)
    return click.option(*flags, name, **settings)


def options(record: type) -> Callable[[F], F]:
    """Add one option per field of the dataclass `record`; the command receives them as one argument `given`."""
    hints = get_type_hints(record, include_extras=True)
    declared = {item.name: (*get_args(hints[item.name]), item.default) for item in fields(record)}
    names = sorted(declared, key=lambda name: LAST.index(name) if name in LAST else -1)

    def wrap(function: F) -> F:
        @wraps(function)
        def gathered(*args: Any, **values: Any) -> Any:
            return function(*args, given=record(**{name: values.pop(name) for name in names}), **values)

        for name in reversed(names):
            kind, given, default = declared[name]
            gathered = option(name, kind, default, given)(gathered)
        return gathered  # type: ignore[return-value]

    return wrap


def parse_settings(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[Setting, ...]:
    """Read NAME=VALUE options; one that is a default applies where it can."""
    default = ctx.get_parameter_source(str(param.name)) is click.core.ParameterSource.DEFAULT_MAP
    try:
        return tuple(replace(Setting.parse(text), optional=default) for text in texts)
    except ParameterError as error:
        raise click.BadParameter(error.message, ctx, param) from error


def _seed(ctx: click.Context, param: click.Parameter, seed: int | None) -> int | None:
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise click.BadParameter(f"{seed} is not a 64-bit integer", ctx, param)
    return seed


def _reserve(ctx: click.Context, _param: click.Parameter, wanted: bool) -> bool:
    if wanted and not ctx.resilient_parsing:
        ctx.with_resource(reserved_stdout())
    return wanted


def _complete(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        registry = getattr(ctx.ensure_object(App).hub, kind)
        return [CompletionItem(spec.name, help=spec.summary) for spec in registry if spec.name.startswith(typed)]

    return complete


def named(kind: str, *flags: str, text: str = "") -> Opt:
    """Return a repeatable option whose values are names in the registry `kind` of the hub."""
    text = text or f"{kind[:-1].replace('_', ' ').capitalize()} (see 'xaihub list {kind}')"
    return Opt(f"{text}; repeatable.", *flags, shell_complete=_complete(kind))


EXPLAINER, METRIC = named("explainers", "-e", "--explainer"), named("metrics", "-k", "--metric")
MODEL = named(
    "models",
    "-m",
    "--model",
    text="Zoo model (see 'xaihub list models'), model card (.yaml), any timm, hf-hub: or torchvision/ name, or your"
    " function that returns a Model (model.py:build)",
)
PARAM = Opt(
    "Set a parameter of every selected explainer, metric or objective that has NAME, or only of WHO; repeatable.",
    "-p", "--param", metavar="[WHO.]NAME=VALUE", callback=parse_settings,
)  # fmt: skip
TARGET = Opt(
    "Class index or name, rank (top2), contrast ('tabby vs tiger cat'), several labels ('cat + dog'), positive or"
    " negative (binary), 'value down' (regression); default: the predicted class or the only value.",
    "-t", "--target", metavar="CLASS",
)  # fmt: skip
SEED = Opt("Seed of every random choice.", callback=_seed)
DEVICE = Opt("auto, cpu, cuda, cuda:N or mps.")
BATCH_SIZE = Opt("Images per forward pass; default: the fastest, which the first passes find.", type=click.IntRange(1))
THREADS = Opt("CPU threads; default: those of the process, or one if that is faster.", type=click.IntRange(1))
BACKEND = Opt(
    "What runs forward passes without gradients: eager (torch), a name from 'xaihub list backends', or auto: an"
    " installed one if there are enough passes to pay for compiling the model.",
    metavar="NAME", shell_complete=_complete("backends"),
)  # fmt: skip
PRECISION = Opt("Precision of the model's layers; bf16 and f16 only on CPUs and GPUs that compute in it.")
LIKE = Opt(
    "Explain the similarity to this image instead of a class; of two, to the first rather than the second; repeatable.",
    metavar="IMAGE",
)  # fmt: skip
TEXT = Opt(
    "Score this text instead of a class, with a model that has a text encoder; the texts are the classes; repeatable.",
    metavar="PROMPT",
)
HEAD = Opt(
    "Head that turns what the network returns into scores (see 'xaihub list heads').", metavar="NAME",
    show_default=False, shell_complete=_complete("heads"),
)  # fmt: skip
OUTPUTS = Opt(
    "What the outputs mean: multiclass, multilabel, binary, regression, regression:UNIT or embedding; default: what the"
    " model card or the architecture declares, else multiclass.",
    metavar="KIND", show_default=False,
)  # fmt: skip
PAGE = Opt(
    "Page or frame of an image file that has several; default: the first, and a note says so.", metavar="N",
    type=click.IntRange(1),
)  # fmt: skip
INPUT = Opt(
    "Set size, mean, std, range, interpolation, crop_pct or crop_mode of the model's preprocessing (mean=0.5,0.5,0.5),"
    " or the bands of an array that figures show (bands=4,3,2); repeatable.",
    "--input", metavar="NAME=VALUE", callback=parse_settings,
)  # fmt: skip
BUDGET = Opt(
    "Forward passes for each explanation, as in 500, or seconds, as in 10s, in which a map is refined; a backward pass"
    " counts as two. Methods that cannot choose their number of passes are named.",
    metavar="N|SECONDSs",
)  # fmt: skip
BUDGETS = Opt(f"{BUDGET.settings['help']} Repeatable: each explainer runs with each budget.", metavar="N|SECONDSs")
JSON = Opt("Print the results as JSON on stdout.", "--json", callback=_reserve)
_LIMIT = (
    "Limit for one result of a third-party plugin, which runs in a process of its own; 0: no limit, in this process"
)
LIMIT = Opt(f"{_LIMIT}.", "--timeout", metavar="SECONDS", type=click.FloatRange(0))
LIMIT_OF_SEVERAL = Opt(
    f"{_LIMIT}; default: {DEFAULT_TIMEOUT:g}, or 0 for a single result.", "--timeout", metavar="SECONDS",
    type=click.FloatRange(0), show_default=False,
)  # fmt: skip
LABELS = Opt("CSV file with file,class_index: explain the labelled class.", metavar="FILE")
MASKS = Opt("Mask images (white on black) with the file names of the images.", metavar="FOLDER")
BOXES = Opt("CSV file with file,left,top,right,bottom in pixels.", metavar="FILE")
FIRST = Opt("Use only the first N images.", metavar="N", type=click.IntRange(1))
ENGINE = Opt("Where to compute: local, ray or an engine of a plugin (see 'xaihub list engines').", metavar="NAME")
WORKERS = Opt("Number of worker processes; default: none for local.", metavar="N", type=click.IntRange(1))
ADDRESS = Opt("Where the engine's workers are; 'auto' finds Ray's cluster.", show_default=False)
OUTPUT = Opt(
    "Output folder, or a file name that ends in .png if there is a single result.", "-o", "--output", metavar="PATH"
)
NEW_FOLDER = Opt("Output folder of the run; must not exist yet.", "-o", "--output", metavar="FOLDER")

json_option = option("as_json", bool, False, JSON)


@dataclass(frozen=True, kw_only=True)
class Display:
    """What to print."""

    as_json: Annotated[bool, JSON] = False
    quiet: Annotated[bool, Opt("Print only results and errors, no progress and no notes.", "-q", "--quiet")] = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Display):
    """Which models to load, and how to run them."""

    models: Annotated[tuple[str, ...], MODEL] = (DEFAULT_MODEL,)
    checkpoint: Annotated[str | None, Opt("Weights to load instead (.safetensors, .pt, .pth).", metavar="FILE")] = None
    classes: Annotated[str | None, Opt("Class names for --checkpoint, one per line.", metavar="FILE")] = None
    outputs: Annotated[str, OUTPUTS] = ""
    inputs: Annotated[tuple[Setting, ...], INPUT] = ()
    layer: Annotated[str | None, Opt("Layer for activation maps; default: automatic.", metavar="NAME")] = None
    device: Annotated[str, DEVICE] = "auto"
    batch_size: Annotated[int | None, BATCH_SIZE] = None
    threads: Annotated[int | None, THREADS] = None
    backend: Annotated[str, BACKEND] = "auto"
    precision: Annotated[Precision, PRECISION] = "f32"
    settings: Annotated[tuple[Setting, ...], PARAM] = ()
    seed: Annotated[int, SEED] = 0
    output: Annotated[str, OUTPUT] = "xaihub-out"
    verbose: Annotated[bool, Opt("Report details, such as the layer and the cost.", "-v", "--verbose")] = False


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(ModelOptions):
    """Which explainers to run, on which class."""

    explainers: Annotated[tuple[str, ...], EXPLAINER] = (DEFAULT_EXPLAINER,)
    target: Annotated[str | None, TARGET] = None
    smooth: Annotated[bool | None, Opt("Smooth the drawn map, never its values; default: if it is pixelwise.")] = None
    colormap: Annotated[
        str | None, Opt("Colour map of matplotlib; default: inferno, or coolwarm for signed maps.", metavar="NAME")
    ] = None
    alpha: Annotated[float, Opt("Opacity of the strongest colours over the image.", type=click.FloatRange(0, 1))] = 0.75
    html: Annotated[bool, Opt("Also write an HTML page per image, with all maps side by side.")] = False
    like: Annotated[tuple[str, ...], LIKE] = ()
    text: Annotated[tuple[str, ...], TEXT] = ()
    head: Annotated[str, HEAD] = ""
    page: Annotated[int | None, PAGE] = None
    budget: Annotated[str | None, BUDGET] = None
    terminal: Annotated[bool, Opt("Also draw the figure in the terminal.")] = False

    @property
    def drawing(self) -> Drawing:
        """How maps are drawn."""
        return {"smooth": self.smooth, "colormap": self.colormap, "alpha": self.alpha}
