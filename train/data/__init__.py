"""Data for training and evaluation: a corpus -> instructions and items -> blocks of tokens.

Input: a corpus folder (train/data/corpus/) and a tokenizer's folder. Output: `sft.jsonl` and `tasks/` (instructions),
`blocks.npy` with `labels.npy` and `positions.npy` (packing), and `leaks.json` (contamination).

segmentation -> questions -> instructions                       questions has one function per family
conversations -> chat_template                                  of users and the Hub, for instructions and packing
corpus/, instructions -> tokenization -> packing (blocks)
corpus/, instructions -> contamination

To add a family of questions, write a function in questions; to add a packing, one in packing. All is seeded and the
same for any number of workers, and tests check it.
"""
