"""`xaihub models`."""

from __future__ import annotations

import click

from xaihub.cli._app import App
from xaihub.cli._options import MODEL
from xaihub.cli._output import put


@click.group()
def models() -> None:
    """Download models for machines without a network.

    \b
    Examples:
      xaihub models download resnet50 -o resnet50/
    """


@models.command()
@click.argument("name", shell_complete=MODEL.settings["shell_complete"])
@click.option("-o", "--output", required=True, metavar="FOLDER", help="Output folder; must be new or empty.")
@click.pass_obj
def download(app: App, /, name: str, output: str) -> None:
    """Save a model with its weights into a folder.

    NAME is a zoo model, or any timm, hf-hub: or torchvision/ name. The folder contains a model card and the weights;
    copy it to a machine without a network and pass the card with -m.

    \b
    Examples:
      xaihub models download resnet50 -o resnet50/
      xaihub explain cat.jpg -m resnet50/card.yaml
    """
    from xaihub.models.saving import save_model

    put(str(save_model(app.hub.load_model(name, device="cpu"), output)))
