"""Activation-Deactivation: mask pixels by switching off the units that represent them inside the network."""

from xaihub_convad.deactivation.removal import Deactivation, MaskedNetwork

__all__ = ["Deactivation", "MaskedNetwork"]
