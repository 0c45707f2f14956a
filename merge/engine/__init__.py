"""Merge as a stream: slices of the parents' tensors in, merged slices out, for many recipes at once.

Input: recipes over one base, as a `Plan` of opened and checked parents. Output: merged values, slice by slice, to a
`Sink` (a file or a model), and what became of the task vectors to an `Observer` (the audit). Read plan.py, then
passes.py and tensor_recipe.py.
"""
