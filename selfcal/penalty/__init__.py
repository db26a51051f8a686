"""Differentiable distances between data and simulation."""
