"""Checks of adapters and model cards: loading changes no outputs, and the layers that methods need are found."""

from __future__ import annotations

from dataclasses import replace

import torch

from xaihub.errors import XaihubError
from xaihub.images import load_image, sample_photo
from xaihub.testing.catalogue import NotApplicable, check, require
from xaihub.testing.model_subject import AdapterSubject, ModelSubject

# Relative; sums in another order differ in the last bits.
TOLERANCE = 1e-4
NONSENSE = "no_such_network_0"


@check("model", advice="fill in the card: summary, architecture, weights.licence, and the checksum of a file")
def card_is_complete(subject: ModelSubject) -> None:
    """The card has a summary, an architecture, the licence of the weights and, for a file, its checksum."""
    card, weights = subject.card, subject.card.weights
    for name in ("summary", "architecture", "adapter"):
        require(bool(getattr(card, name)), f"the card has no {name}")
    if weights.source != "none":
        require(bool(weights.licence), "the card does not name the licence of the weights")
    if weights.source in ("package", "file"):
        require(bool(weights.sha256), "the card has no sha256 of the weights", advice="add weights.sha256")


@check("adapter", advice="let `knows` return true for every name that `names` returns, and for no other")
def names_are_its_own(subject: AdapterSubject) -> None:
    """It knows the names that it lists, and not an invented name."""
    listed = subject.adapter.names()
    names = [*listed[:: max(1, len(listed) // 20)], *subject.adapter.examples]
    for name in names:
        require(subject.adapter.knows(name), f"it lists {name!r}, but does not know it")
    require(not subject.adapter.knows(NONSENSE), f"it claims to know {NONSENSE!r}")


@check("adapter", advice="raise `xaihub.ModelError` with a one-line message")
def unknown_architecture_is_refused(subject: AdapterSubject) -> None:
    """An architecture that does not exist raises a one-line error."""
    name = (*subject.spec.prefixes, "")[0] + NONSENSE
    try:
        subject.build(card=replace(subject.card, name=name, architecture=name))
    except XaihubError:
        return
    except NotApplicable:  # without a network, a name that is not known here may still exist
        raise
    except Exception as error:  # the plugin fence: a plugin may fail in any way
        require(False, f"an unknown architecture raised {type(error).__name__}")
    require(False, f"it built an architecture called {name!r}")


@check("adapter", "model", advice="correct names and weights (path, sha256, keys), or their use in `build`")
def can_be_built(subject: ModelSubject) -> None:
    """The network can be built with the weights of the card, whose checksum is correct."""
    subject.build()


@check("adapter", "model", advice="pass `Hints` for the search, or set layers by role in the card")
def every_role_resolves(subject: ModelSubject) -> None:
    """The layer for activation maps, the blocks, the classifier and the class names are found."""
    model = subject.model
    structure = model.structure
    layer = model.layer()
    require(bool(layer.reason), f"layer {layer.name!r} was chosen without a reason")
    if model.outputs.kind != "embedding":
        require(bool(structure.head), "no classifier was found", advice="pass it in `Hints(heads=...)`")
    require(bool(structure.blocks), "no blocks were found through which all information flows")
    modules = dict(model.module.named_modules())
    for role, name in subject.card.layers.items():
        require(name in modules, f"the card's layer {name!r} for {role!r} does not exist", advice="correct the card")
    outputs = model.predict(subject.inputs()).shape[1]
    named = len(model.classes)
    require(not named or named == outputs, f"it has {outputs} outputs but {named} class names")


@check("adapter", "model", advice="do not change weights, precision or mode when building the model")
def logits_are_unchanged_by_loading(subject: ModelSubject) -> None:
    """Weights saved to a file and loaded again give the same scores, which do not depend on the batch."""
    model, inputs = subject.model, subject.inputs()
    require(not model.module.training, "the network is in training mode", advice="return it in evaluation mode")
    logits = model.predict(inputs)
    with torch.inference_mode():
        plain = model.module(inputs).float()
    scale = float(logits.abs().max()) + 1e-12
    require(float((logits - plain).abs().max()) <= TOLERANCE * scale, "calling the network directly gives other scores")
    changed, loaded = subject.reloaded()
    with torch.inference_mode():
        wanted = changed(inputs).float()
    difference = float((loaded.predict(inputs) - wanted).abs().max()) / scale
    require(difference <= TOLERANCE, f"after saving and loading, the scores differ by a relative {difference:.2g}")
    alone = torch.cat([model.predict(row[None]) for row in inputs])
    require(float((logits - alone).abs().max()) <= TOLERANCE * scale, "an image's scores depend on its batch")


@check("adapter", "model", advice="take steps, size, mean and std from the source's own configuration")
def preprocessing_matches_the_source(subject: ModelSubject) -> None:
    """Preprocessing matches the source's own (timm), the declared size and the declared units."""
    model = subject.model
    photo = load_image(sample_photo()).rgb
    inputs, _ = model.prepare(photo)
    size = tuple(inputs.shape)
    require(size == model.input_size, f"an image becomes {size} instead of {model.input_size}")
    back = model.preprocessing.normalise(model.preprocessing.denormalise(inputs))
    require(torch.allclose(back, inputs, atol=1e-4), "`denormalise` does not undo `normalise`")
    if not hasattr(model.module, "pretrained_cfg"):
        return
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config(args=_overrides(subject), model=model.module)
    theirs = create_transform(**config, is_training=False)(photo)
    same = theirs.shape == inputs.shape and torch.allclose(theirs, inputs, atol=1e-5)
    require(same, "timm preprocesses an image differently")


def _overrides(subject: ModelSubject) -> dict[str, object]:
    """Return a card's overrides of the preprocessing, under timm's names."""
    changed = dict(subject.card.input)
    size = changed.pop("size", None)
    if size is not None:
        changed["input_size"] = (subject.model.input_size[0], *((size, size) if isinstance(size, int) else size))
    return changed
