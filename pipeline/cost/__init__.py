"""The cost of a sweep on a cluster: tokens, FLOPs, hours, memory and disk.

Input: the cells of a plan. Output: a table. From the plan alone: pure arithmetic, no torch, no GPU.

Comes in: the cells of a plan. Goes out: a table. From the plan alone; pure arithmetic, no torch, no GPU.

shape the numbers of a model that decide its cost hardware clusters by name: memory and peak FLOP/s of their GPUs flops
FLOPs of training and of scoring a token memory bytes a GPU holds while it trains; scoring_memory: while it scores and
merges; host_memory: of a node performance tokens/s, utilisation and peak memory that finished trainings recorded work
what one stage is: its tokens, FLOPs and bytes estimate seconds of every stage, the longest way through the plan, disk
at its peak fit whether it fits, and what would table all of it, for people
"""
