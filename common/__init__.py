"""What every room may use and no room owns: refusals in one line, safe files, units, and what lies on the hub.

Imports nothing of ours.
"""
