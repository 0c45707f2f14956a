"""Checkpoints -> scores, by lm-eval. Importing this package imports no torch."""
