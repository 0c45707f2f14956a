"""What runs, in which order, and what it left behind."""
