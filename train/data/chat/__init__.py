"""Conversations for SFT: rows of data sets -> turns -> text by a chat template -> tokens, with the loss on answers.

formats    what a row is known by, and its turns: a list of (role, text) in a normal form
reading    a user's files and data sets of the Hub as conversations
template   a chat template: how it renders, and what it writes around an answer, found out by a probe
masking    conversations as examples for packing, masked by rendering prefix by prefix

What may be touched: a new format is a row of `formats.FORMATS` and a function that reads its turns.
"""
