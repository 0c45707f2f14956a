"""Documents in the language and in English, split into train, dev and test.

Input: `CorpusSettings` (what) and `CorpusOptions` (where): a user's files, two Bibles or a cipher of English (sources),
or data sets of the Hub (hub). Output: a folder with `text/`, `verses.jsonl` if verses are aligned, and `counts.json`.
documents describes its files, and reads them for the other packages.

To add a source, add a branch to `build.build`. The hash of a document's name decides its split, which never changes.
Held-out text that is in training text is dropped.
"""
