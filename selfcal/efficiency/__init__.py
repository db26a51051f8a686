"""Efficiencies of single jets, given the jets around them."""
