"""Experiments: which stages run, in which order, and the reports on them."""
