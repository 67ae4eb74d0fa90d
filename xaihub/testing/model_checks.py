"""Checks of adapters and of model cards: loading changes nothing, and every part that methods ask for is there."""

from __future__ import annotations

import torch

from xaihub.images import load_image, sample_photo
from xaihub.testing.catalogue import Kind, check, require
from xaihub.testing.model_subject import AdapterSubject, CardSubject, ModelSubject

# Sums in another order differ in the last bits.
TOLERANCE = 1e-4
NONSENSE = "no_such_network_0"
_BOTH: tuple[Kind, ...] = ("adapter", "model")


@check("model", advice="fill in the card: summary, architecture, weights.licence, and the checksum of a file")
def card_is_complete(subject: CardSubject) -> None:
    """The card says what the model is, what it is built from, and under which licence its weights are."""
    card, weights = subject.card, subject.card.weights
    for name in ("summary", "architecture", "adapter"):
        require(bool(getattr(card, name)), f"the card has no {name}")
    if weights.source != "none":
        require(bool(weights.licence), "the card names no licence of the weights")
    if weights.source in ("package", "file"):
        require(bool(weights.sha256), "the card has no sha256 of the weights", advice="add weights.sha256")


@check("adapter", advice="let `knows` be true of every name that `names` returns, and of no other")
def names_are_its_own(subject: AdapterSubject) -> None:
    """It knows the names that it lists, and not a name that nobody gave."""
    listed = subject.adapter.names()
    names = [*listed[:: max(1, len(listed) // 20)], *subject.adapter.examples]
    for name in names:
        require(subject.adapter.knows(name), f"it lists {name!r}, and does not know it")
    require(not subject.adapter.knows(NONSENSE), f"it claims to know {NONSENSE!r}")


@check("adapter", advice="raise `xaihub.ModelError` with one sentence")
def unknown_architecture_is_refused(subject: AdapterSubject) -> None:
    """An architecture that does not exist is an error of one line."""
    prefix = subject.spec.prefixes[0] if subject.spec.prefixes else ""
    subject.refuses(prefix + NONSENSE)


def can_be_built(subject: ModelSubject) -> None:
    """The network can be built, with the weights of the card, which have its checksum."""
    subject.build()


def every_role_resolves(subject: ModelSubject) -> None:
    """The layer for activation maps, the blocks, the classifier and the class names are found."""
    model = subject.model
    structure = model.structure
    layer = model.layer()
    require(bool(layer.reason), f"nothing says why layer {layer.name!r} was chosen")
    require(bool(structure.head), "no classifier was found", advice="name it in `Hints(heads=...)`")
    require(bool(structure.blocks), "no blocks were found that all information flows through")
    modules = dict(model.module.named_modules())
    for role, name in subject.card.layers.items():
        require(name in modules, f"the card's layer {name!r} for {role!r} does not exist", advice="correct the card")
    outputs = model.predict(subject.inputs()).shape[1]
    named = len(model.classes)
    require(not named or named == outputs, f"it has {outputs} outputs and {named} class names")


def logits_are_unchanged_by_loading(subject: ModelSubject) -> None:
    """Weights that are written to a file and loaded again give the same scores, and they do not depend on the batch."""
    model, inputs = subject.model, subject.inputs()
    require(not model.module.training, "the network is in training mode", advice="return it in evaluation mode")
    logits = model.predict(inputs)
    with torch.inference_mode():
        plain = model.module(inputs).float()
    scale = float(logits.abs().max()) + 1e-12
    require(float((logits - plain).abs().max()) <= TOLERANCE * scale, "the network itself gives other scores")
    changed, loaded = subject.reloaded()
    with torch.inference_mode():
        wanted = changed(inputs).float()
    difference = float((loaded.predict(inputs) - wanted).abs().max()) / scale
    require(difference <= TOLERANCE, f"after saving and loading the scores differ by {difference:.2g} of their size")
    alone = torch.cat([model.predict(row[None]) for row in inputs])
    require(float((logits - alone).abs().max()) <= TOLERANCE * scale, "an image's scores depend on its batch")


def preprocessing_is_the_source_s(subject: ModelSubject) -> None:
    """An image is prepared as the source itself prepares it (timm), at the declared size and in the declared units."""
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
    require(same, "timm prepares an image differently")


def _overrides(subject: ModelSubject) -> dict[str, object]:
    """Return a card's changes of the preprocessing, under timm's names."""
    changed = dict(subject.card.input)
    size = changed.pop("size", None)
    if size is not None:
        changed["input_size"] = (subject.model.input_size[0], *((size, size) if isinstance(size, int) else size))
    return changed


for _kind in _BOTH:
    check(_kind, advice="correct the names and weights (path, sha256, keys), or what `build` does with them")(
        can_be_built
    )
    check(_kind, advice="help the search with `Hints`, or fix layers by role in the card")(every_role_resolves)
    check(_kind, advice="change neither weights nor precision nor mode when building the model")(
        logits_are_unchanged_by_loading
    )
    check(_kind, advice="take steps, size, mean and std from the source's own configuration")(
        preprocessing_is_the_source_s
    )
