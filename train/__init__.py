"""The training room: text -> tokens -> blocks -> a trained checkpoint. Importing it imports no torch.

In come a user's text, or the names of data sets (train/data/), and for a training a model's folder, a folder of
blocks and `settings.TrainingSettings`. Out go folders: a corpus, items, blocks, and a checkpoint that any Hugging
Face tool loads.

`settings` holds what decides each result; every field is in the key of its stage.
`trainer.train` is the one way to train, in this process or as `python -m train JOB.json` under a launcher. What may
be touched: `lora` for other adapters, `parallel` for other engines, `base_model` for the recipe of the small base.
The order of blocks, the optimiser and its schedule are promises: a change makes other results, and needs a new
revision of the stage. Rooms beside this one are not imported; common/ is.
"""
