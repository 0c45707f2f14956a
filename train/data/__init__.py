"""Data for training and evaluation: a corpus -> instructions and items -> blocks of tokens.

In come a corpus folder (train/data/corpus/) and a tokenizer's folder. Out go `sft.jsonl` and `tasks/` (instructions),
`blocks.npy` with `labels.npy` and `positions.npy` (packing), and `leaks.json` (contamination).

corpus/ -> questions -> instructions    families: a function for each kind
chat/ -> conversations, for instructions and packing: formats, templates, masks
corpus/, instructions -> tokenization (words) -> packing (blocks)
corpus/, instructions -> contamination (item_index)

What may be touched: a new family of questions is a function of families; another packing is a function of packing.
All is seeded and the same for any number of workers (processes), and tests hold it so.
"""
