"""The paper's experiment on tabular data, behind `xaihub reproduce expo`; nothing outside imports it."""
