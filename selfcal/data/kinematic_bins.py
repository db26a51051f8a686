"""Bins of pT and |η|, by their edges."""

from __future__ import annotations


class KinematicBins:
    """What is binned in pT and |η|, with P + 1 edges of the one and E + 1 of the other."""

    pt_gev_edges: tuple[float, ...]
    abs_eta_edges: tuple[float, ...]

    @property
    def n_pt(self) -> int:
        """Number of pT bins, P."""
        return len(self.pt_gev_edges) - 1

    @property
    def n_eta(self) -> int:
        """Number of |η| bins, E."""
        return len(self.abs_eta_edges) - 1
