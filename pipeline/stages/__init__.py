"""The stages of a plan: a stage is one typed value, and what plans and what makes a kind of it are in one file."""
