"""The experiments behind `xaihub reproduce shapley`; nothing outside this package imports it."""
