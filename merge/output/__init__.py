"""Written merges: a new checkpoint folder with weights, config, tokenizer, model card, recipe and audit.

A folder is complete or absent, whatever ends the process. A model card is also input: a merge can be repeated from it.
"""
