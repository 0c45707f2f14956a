"""Checkpoint folders: what a merge reads and what it leaves.

In: a Hugging Face folder (safetensors, or the older pytorch_model.bin), with or without a LoRA adapter. Out: a table of
tensors that are read piece by piece; and, from merged slices, a new folder with its metadata, card and recipe,
published by one rename. Touched: the new folder alone, and a hidden one beside it until then. Parents are only read.
"""
