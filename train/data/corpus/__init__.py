"""Documents in the language and in English, split into train, dev and test.

In come `CorpusSettings` (what) and `CorpusOptions` (where): the packages of the Bible (bible), its English and a cipher
of it (cipher), a user's files (text_files), or data sets of the Hub (hub_corpus, shards). Out goes a folder with
`text/`, `verses.jsonl` where verses are aligned, and `counts.json`; documents says which file holds what, and is what
the rest of the room reads a corpus by.

What may be touched: a new source is a branch of `build.build`. A document's split goes by the hash of its name and
never moves; held-out text that stands in training text is dropped.
"""
