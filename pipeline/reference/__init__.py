"""The generated parts of the reference pages: `python -m pipeline.reference` writes them into docs/reference/.

In go the commands, conf/ and the schema of the config; out comes Markdown between two marks of a page.
tests/pipeline/test_reference.py keeps the pages true.
"""
