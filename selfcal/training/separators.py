"""Numbers of a jet that tell charm from mis-measured light where the scores of a tagger do not.

A track is *displaced* if its d0 significance, signed by the jet's direction, is above ``DISPLACED``, and
*mirrored* if it is below -``DISPLACED``; both only with |z0 significance| < ``NEAR``, against pile-up.
Decays of charm put tracks on the displaced side alone, errors of measurement as many on one as on the other.

``displaced_tracks``, ``mirrored_tracks``: ln(1 + n) of their number n;
``displaced_mass``: ln(1 + m/GeV) of the invariant mass m of the displaced tracks with the pion's mass, 0 for
fewer than two. Mis-measured tracks at large angles make any mass, a charm hadron at most 2 GeV.

Each is divided by its ``SCALE``, about the standard deviation among light jets with some displaced track.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from selfcal.config.calibration import Separator
from selfcal.data.field_names import require_track_fields
from selfcal.data.jets import Jets
from selfcal.sbi.track_columns import REQUIRED, column, track_columns, track_pt_gev
from selfcal.tagger.vertex_fit import PION_MASS_GEV

DISPLACED = 2.5
NEAR = 4.0

SCALE: dict[Separator, float] = {"displaced_tracks": 0.5, "mirrored_tracks": 0.4, "displaced_mass": 0.4}

_MOMENTUM = ("qOverP", "deta", "dphi")


def separator_columns(jets: Jets, names: Sequence[Separator]) -> NDArray[np.float64]:
    """The separators ``names`` of every jet, (N, A).

    Raises
    ------
    DataError
        If a signed significance is absent, or, for a mass, the momentum of tracks.
    """
    needed = [*REQUIRED, *(_MOMENTUM if "displaced_mass" in names else ())]
    shorter = "shorten 'calibration.composition.separators'"
    require_track_fields(jets, needed, by="the separators", instead=shorter)
    tracks = track_columns(jets)
    near = np.abs(tracks.z0_significance) < NEAR
    displaced = near & (tracks.d0_significance > DISPLACED)
    mirrored = near & (tracks.d0_significance < -DISPLACED)

    def counted(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.log1p(np.bincount(tracks.jet[chosen], minlength=len(jets)))

    found = {}
    for name in names:
        if name == "displaced_mass":
            value = np.log1p(invariant_mass_gev(jets, displaced, tracks.jet))
        else:
            value = counted(displaced if name == "displaced_tracks" else mirrored)
        found[name] = value / SCALE[name]
    return np.stack([found[name] for name in names], axis=1)


def invariant_mass_gev(jets: Jets, chosen: NDArray[np.bool_], jet: NDArray[np.int64]) -> NDArray[np.float64]:
    """√((Σ E)² − |Σ p|²) of the ``chosen`` tracks (T,) of every jet as pions, (N,); 0 for fewer than two.

    Azimuths are relative to the jet, whose own does not matter.
    """
    own = jet[chosen]
    pt = track_pt_gev(jets)[chosen]
    eta = jets.eta.astype(np.float64)[own] + column(jets, "deta")[chosen]
    phi = column(jets, "dphi")[chosen].astype(np.float64)
    momentum = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])
    energy = np.sqrt((momentum**2).sum(0) + PION_MASS_GEV**2)
    total = [np.bincount(own, part, minlength=len(jets)) for part in (energy, *momentum)]
    squared = total[0] ** 2 - total[1] ** 2 - total[2] ** 2 - total[3] ** 2
    several = np.bincount(own, minlength=len(jets)) >= 2
    return np.where(several, np.sqrt(np.maximum(squared, 0.0)), 0.0)
