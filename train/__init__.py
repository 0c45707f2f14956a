"""Text -> tokens -> blocks -> a trained checkpoint. Importing this package imports no torch."""
