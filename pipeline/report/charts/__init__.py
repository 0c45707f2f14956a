"""Charts as values: each file has the tables of a family of charts and their Vega-Lite specifications.

Comes in: scores, claims, frontiers, merges and stage records. Goes out: `Chart`, which the page draws and figures.py
writes to files.
"""
