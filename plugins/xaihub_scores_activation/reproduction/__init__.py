"""The reconstruction behind `xaihub reproduce scores-activation`; nothing outside this package imports it."""
