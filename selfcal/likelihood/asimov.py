"""Expected results: Asimov data, and templates in which nothing of the data is left.

A blinded measurement is the one that is made when data are the simulation: the calibrated template of each
flavour is put back to the nominal one, the relative spread of the bootstrap maps and of other map models
around it is kept, and the data are replaced by the expectation. Every scale factor is then one, with the
uncertainty to be expected. What data still decide: the number of jets of each region, which channels have
any, and the fitted composition. The uncertainty of carrying the calibration's shift from one region to
another scales with that shift and is therefore zero. External scale factors stay what they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from selfcal.config.fit import FitConfig
from selfcal.likelihood.external import NONE, external_entries
from selfcal.likelihood.layout import make_layout
from selfcal.likelihood.templates import Templates


def blinded_templates(templates: Templates, config: FitConfig) -> Templates:
    """Templates and data that know nothing of the discriminant in data; see above.

    Raises
    ------
    DataError, ConfigError
        As :func:`selfcal.likelihood.layout.make_layout`.
    """
    mean = templates.replicas.mean(axis=0)
    nominal, calibrated = templates.nominal, templates.calibrated
    known = (external_entries(templates.binning, config) != NONE)[:, :, None]
    base = np.where(known, calibrated, nominal)

    def carried(varied: NDArray[np.float64], around: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = np.divide(varied, around, out=np.ones_like(varied), where=around > 0)
        return np.asarray(base * ratio)

    hidden = replace(
        templates,
        calibrated=base,
        calibrated_variance=np.where(known, templates.calibrated_variance, templates.nominal_variance),
        corrected=None,
        detector={name: carried(varied, calibrated) for name, varied in templates.detector.items()},
        modelling={name: carried(varied, calibrated) for name, varied in templates.modelling.items()},
        replicas=np.stack([carried(replica, mean) for replica in templates.replicas]),
        variations={name: carried(varied, calibrated) for name, varied in templates.variations.items()},
    )
    layout = make_layout(hidden, config)
    return replace(hidden, data=np.einsum("rf,rfpk->rpk", layout.yields, layout.shape))
