"""The cost of a sweep on a cluster: tokens, FLOPs, hours, memory and disk.

Input: the cells of a plan. Output: a table. Pure arithmetic from the plan alone: no torch, no GPU.

    shape       the sizes of a model that decide its cost, and the FLOPs of a token
    hardware    GPUs and clusters; speeds that finished trainings reached
    memory      bytes of a GPU and of a node, whether a cluster has them, and what would fit
    estimate    what a stage is, how long it takes, the longest way through the plan, disk at its peak
    table       all of it, for people
"""
