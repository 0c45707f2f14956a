"""A checkpoint -> scores, by lm-eval.

Comes in: a causal LM (in memory or as a Hugging Face folder) with its tokenizer, and what to ask: files of
items, files of held-out documents, a user's lm-eval YAMLs (`task_set.prepare`).
Goes out: `harness.Scores`, written as scores.jsonl (a task and metric a line) and samples.jsonl (an item a line); the
fields are those of docs/reference/results.md.
May be touched: the files of the output folder. A model that is handed over is left in eval mode; nothing is trained,
downloaded or cached on disk, but for tasks that lm-eval ships and asks the hub for.

Importing this package imports no torch.
"""
