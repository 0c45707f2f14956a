"""Text -> tokens -> blocks -> a trained checkpoint. Importing this package imports no torch.

Input: a user's text or the names of data sets (train/data/), and for a training a model's folder, a folder of blocks
and `settings.TrainingSettings`. Output: folders with a corpus, items, blocks, and a checkpoint that any Hugging Face
tool loads.

`settings` contains what decides each result; every field is in the key of its stage. `trainer.train` is the one way to
train, in this process or as `python -m train JOB.json` under a launcher; `hf_trainer` is transformers' part of it.
`lora` adds other adapters, `memory_saving` a base in fewer bits, `averaging` a mean of checkpoints, `distributed` other
engines, and `base_model` has the recipe of the small base. The order of blocks, the optimiser and its schedule are
promises: a change gives other results, and needs a new revision of the stage. Only common/ is imported.
"""
