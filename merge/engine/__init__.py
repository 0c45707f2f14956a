"""Merging as a stream: slices of the parents' tensors in, merged slices out, for many recipes at once.

In: recipes over one base, as a `Plan` of opened and checked parents. Out: merged values, slice by slice, to a `Sink`
(a file or a model), and what became of the task vectors to an `Observer` (the audit). Touched: nothing but the sinks.
"""
