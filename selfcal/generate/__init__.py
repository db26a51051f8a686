"""Collisions from Pythia 8 through a parametric tracker with nuisance parameters."""
