"""Training: `run` trains one model, `sweep` one per parameter value; `data` feeds images, `loop` takes the steps."""
