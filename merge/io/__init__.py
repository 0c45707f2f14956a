"""Checkpoint folders: reading parents, writing results.

Input: a Hugging Face folder (safetensors, or the older pytorch_model.bin), with or without a LoRA adapter. Output: a
table of tensors that are read piece by piece; and, from merged slices, a new folder with its metadata, card and recipe,
published by one rename. Side effects: the new folder alone, and a hidden one next to it until then. Parents are only
read.
"""
