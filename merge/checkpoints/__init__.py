"""Checkpoint folders as tables of tensors that are read piece by piece.

Input: a Hugging Face folder (safetensors, or the older pytorch_model.bin), with or without a LoRA adapter. A checkpoint
can be read under another saver's names, with an adapter added, and with the rows of another tokenizer. Folders are only
read.
"""
