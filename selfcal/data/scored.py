"""Jets reduced to what calibration and fit need: scores, kinematics, label, fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScoredJets:
    """N jets of one dataset or of several, as seen by the calibration.

    Attributes
    ----------
    log_probability : (N, 4) float64, ln p of the classes in ``FLAVOURS`` order
    pt_gev, abs_eta : (N,) float64
    flavour : (N,) int8, -1 for data
    weight : (N,) float64
    fold : (N,) int8, values of ``Fold``
    event : (N,) int64, index of the jet's event: the unit of the bootstrap
    regressed_pt_gev : (N,) float64, the tagger's estimate of the true pT; None without that head
    separators : (N, A) float64, what the fractions are fitted with beside the scores; None without such
    """

    region: str
    log_probability: NDArray[np.float64]
    pt_gev: NDArray[np.float64]
    abs_eta: NDArray[np.float64]
    flavour: NDArray[np.int8]
    weight: NDArray[np.float64]
    fold: NDArray[np.int8]
    event: NDArray[np.int64]
    regressed_pt_gev: NDArray[np.float64] | None = None
    separators: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.pt_gev)

    def select(self, chosen: NDArray[np.bool_]) -> ScoredJets:
        """The chosen jets."""
        return ScoredJets(
            region=self.region,
            log_probability=self.log_probability[chosen],
            pt_gev=self.pt_gev[chosen],
            abs_eta=self.abs_eta[chosen],
            flavour=self.flavour[chosen],
            weight=self.weight[chosen],
            fold=self.fold[chosen],
            event=self.event[chosen],
            regressed_pt_gev=None if self.regressed_pt_gev is None else self.regressed_pt_gev[chosen],
            separators=None if self.separators is None else self.separators[chosen],
        )


def concatenate(parts: Sequence[ScoredJets]) -> ScoredJets:
    """All jets of ``parts`` in order; the region name is kept if it is the same, else joined.

    Regressed momenta and separators are kept where every part has them.
    """
    regressed = [part.regressed_pt_gev for part in parts if part.regressed_pt_gev is not None]
    separators = [part.separators for part in parts if part.separators is not None]
    regions = list(dict.fromkeys(part.region for part in parts))
    return ScoredJets(
        region="+".join(regions),
        log_probability=np.concatenate([part.log_probability for part in parts]),
        pt_gev=np.concatenate([part.pt_gev for part in parts]),
        abs_eta=np.concatenate([part.abs_eta for part in parts]),
        flavour=np.concatenate([part.flavour for part in parts]),
        weight=np.concatenate([part.weight for part in parts]),
        fold=np.concatenate([part.fold for part in parts]),
        event=np.concatenate([part.event for part in parts]),
        regressed_pt_gev=np.concatenate(regressed) if len(regressed) == len(parts) else None,
        separators=np.concatenate(separators) if len(separators) == len(parts) else None,
    )
