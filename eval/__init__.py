"""Score a checkpoint by lm-eval.

Input: a causal LM (in memory or as a Hugging Face folder) with its tokenizer, and the tasks: files of items, files of
held-out documents, a user's lm-eval YAMLs (`task_set.prepare`).
Output: `harness.Scores`, written as scores.jsonl (one task and metric per line) and samples.jsonl (one item per line);
docs/reference/results.md has the fields.

task_set (task_checks) -> harness -> records (metrics)          harness calls lm-eval with the model of language_model
loading -> language_model (packing, batches, prompting)         answers generates without lm-eval

It writes only to the output folder. A model that is passed in is left in eval mode. Nothing is trained, downloaded or
cached on disk, except by tasks of lm-eval that download their data. Importing this package imports no torch.
"""
