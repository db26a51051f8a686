"""Templates, the HistFactory likelihood, and the scale factors it gives."""
