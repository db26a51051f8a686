"""NaN and infinities in every field that is used: counted, named and refused; nothing evaluates them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import awkward as ak
import correctionlib
import h5py
import numpy as np
import pytest

from selfcal.config.card import DataCard
from selfcal.config.fit import ExportConfig
from selfcal.data.hdf5 import write_jets
from selfcal.data.jet_reader import Wanted
from selfcal.data.jets import TRACK_FIELDS
from selfcal.data.reading import read_dataset
from selfcal.errors import DataError, SelfcalError
from selfcal.export.correctionlib_export import correction_set
from selfcal.export.rows import ScaleFactorRows
from selfcal.likelihood.workspace_file import read_workspace
from selfcal.run.atomic import read_json, write_json
from tests.data import test_pfnano_reader as pfnano
from tests.data import test_physlite_reader as physlite
from tests.data.test_nanoaod_reader import content, write
from tests.export.conftest import make_scale_factors
from tests.reliability.writers import JETS

NOT_FINITE = {"NaN": math.nan, "+Inf": math.inf, "-Inf": -math.inf}
SCORES = ("T_pb", "T_pc", "T_pu", "T_ptau")
JET_FIELDS = ("pt_btagJes", "eta_btagJes", "mcEventWeight", "eventNumber", "runNumber", "jet_rank",
              "HadronConeExclTruthLabelID", "cut", *SCORES)  # fmt: skip


def native(path: Path, dataset: str, field: str, value: float) -> None:
    """A native file all of whose fields are floating-point, one value of one of them replaced."""
    scores = {name: np.full(len(JETS), 0.25) for name in SCORES}
    write_jets(path, JETS, labels=True, jet_fields={**scores, "cut": np.ones(len(JETS))})
    with h5py.File(path, "r+") as file:
        table = file[dataset][:]
        kept = ("valid", "ftagTruthOriginLabel", "ftagTruthVertexIndex")
        types = [(name, table.dtype[name] if name in kept else "<f8") for name in table.dtype.names]
        changed = np.zeros(table.shape, types)
        for name in table.dtype.names:
            changed[name] = table[name]
        valid = np.argwhere(changed["valid"])[0] if dataset == "tracks" else [7]
        changed[field][tuple(valid)] = value
        del file[dataset]
        file[dataset] = changed


@pytest.mark.fault(5, "NaN, +Inf, -Inf in every jet and track field of HDF5")
def test_every_field_of_native_files(tmp_path, attempts) -> None:
    cards = {
        "tracks": DataCard(
            name="x",
            role="simulation",
            region="r",
            files=("x.h5",),
            selection=({"field": "cut", "min": 0.5},),
        )
    }
    cards["jets"] = cards["tracks"].model_copy(
        update={"scores": DataCard.model_fields["scores"].annotation.__args__[0](tagger="T")}
    )
    places = [*(("jets", name) for name in JET_FIELDS), *(("tracks", name) for name in TRACK_FIELDS)]
    path = tmp_path / "x.h5"
    for (dataset, field), (word, value) in itertools.product(places, NOT_FINITE.items()):
        with attempts(f"{dataset}/{field} {word}"):
            native(path, dataset, field, value)
            wanted = Wanted(tracks=dataset == "tracks", scores=dataset == "jets")
            with pytest.raises(DataError) as caught:
                list(read_dataset(cards[dataset], [path], wanted))
            assert "1" in caught.value.problem
            assert field.partition("_")[0] in str(caught.value)


@pytest.mark.fault(5, "NaN, +Inf, -Inf in every column of NanoAOD that is used")
def test_every_column_of_nanoaod(tmp_path, attempts) -> None:
    used = ("Jet_pt", "Jet_eta", "Jet_phi", "Jet_hadronFlavour", "Jet_btagPNetB", "Jet_btagPNetCvB",
            "Jet_btagPNetCvL", "Jet_btagPNetTauVJet", "genWeight", "run", "luminosityBlock", "event",
            "PV_npvs")  # fmt: skip
    card = DataCard.model_validate(
        {"name": "x", "role": "simulation", "region": "r", "format": "nanoaod", "files": ("x.root",)}
        | {"scores": {"tagger": "PNet"}, "selection": [{"field": "PV_npvs", "max": 100}], "weights": "event"}
    )
    for name, (word, value) in itertools.product(used, NOT_FINITE.items()):
        with attempts(f"{name} {word}"):
            columns = content()
            if isinstance(columns[name], np.ndarray):
                columns[name] = columns[name].astype(np.float64)
                columns[name][0] = value
            else:
                first, *rest = ak.to_list(columns[name])
                columns[name] = ak.values_astype(ak.Array([[value, *first[1:]], *rest]), np.float32)
            path = write(tmp_path / "x.root", columns)
            with pytest.raises(DataError):
                list(read_dataset(card, [path], Wanted(tracks=False, scores=True)))


def with_first(values, value: float):
    """Nested lists of numbers, the first of which is another one."""
    if isinstance(values, list):
        return [with_first(values[0], value), *values[1:]]
    return value


@pytest.mark.fault(5, "NaN, +Inf, -Inf in every column of PFNano and PHYSLITE that is used")
def test_every_column_of_formats_with_tracks(tmp_path, attempts) -> None:
    path = tmp_path / "x.root"
    card = pfnano.card_for(path)
    used = [("Jet", name) for name in ("pt", "eta", "phi", "hadronFlavour")]
    used += [("PFCands", name) for name in pfnano.content()["PFCands"]]
    for (group, name), (word, value) in itertools.product(used, NOT_FINITE.items()):
        with attempts(f"{group}_{name} {word}"):
            columns = pfnano.content()
            columns[group][name] = with_first(columns[group][name], value)
            pfnano.write(path, columns)
            with pytest.raises(DataError):
                pfnano.read(card)
    card = physlite.card_for(path, weights="event", scores={"tagger": "GN2v01"})
    whole = physlite.content()
    of_tracks = ("d0", "z0", "vz", "phi", "theta", "qOverP")
    of_tracks += ("definingParametersCovMatrixDiag", "definingParametersCovMatrixOffDiag")
    names = [f"{physlite.JET}{name}" for name in ("pt", "eta", "phi")]
    names += [f"{physlite.TRACK}{name}" for name in of_tracks]
    names += [name for name in whole if "GN2v01" in name] + ["EventInfoAuxDyn:mcEventWeights"]
    for name, (word, value) in itertools.product(names, NOT_FINITE.items()):
        with attempts(f"{name} {word}"):
            values = whole[name]
            if name.startswith(physlite.TRACK) or "GN2v01" in name:  # links lead there, to the first as well
                values = [[with_first(one, value) for one in values[0]], *values[1:]]
            else:
                values = with_first(values, value)
            if name.endswith("OffDiag"):  # only that of z0 and theta is used
                values = whole[name]
                values = [
                    [[value if k == 4 else c for k, c in enumerate(row)] for row in values[0]],
                    *values[1:],
                ]
            physlite.write(path, whole | {name: values})
            with pytest.raises(DataError):
                physlite.read(card, tracks=name.startswith((physlite.TRACK, physlite.JET)), scores=True)


@pytest.mark.fault(5, "NaN, +Inf, -Inf through every correction and input of our correctionlib file")
def test_correctionlib_evaluates_none_of_them(attempts) -> None:
    """correctionlib lets NaN pass uniform and clamped binnings: ours have neither."""
    factors = ScaleFactorRows(make_scale_factors())
    text = correction_set(factors, ExportConfig()).model_dump_json(exclude_unset=True)
    loaded = correctionlib.CorrectionSet.from_string(text)
    good = {"systematic": "central", "working_point": "77", "flavor": 5, "abseta": 1.0, "pt": 30.0}
    good |= {"discriminant": 1.0}
    for name, correction in loaded.items():
        usual = {one.name: 0 if name.endswith("incl") and one.name == "flavor" else good[one.name]
                 for one in correction.inputs}  # fmt: skip
        assert np.isfinite(correction.evaluate(*usual.values()))
        for given, (word, value) in itertools.product(usual, NOT_FINITE.items()):
            if isinstance(usual[given], float) and not (given == "discriminant" and word != "NaN"):
                with attempts(f"{name} {given} {word}"):
                    changed = [value if key == given else old for key, old in usual.items()]
                    if name.endswith("status"):
                        assert correction.evaluate(*changed) == 0  # there is no scale factor
                    else:
                        with pytest.raises((RuntimeError, IndexError)):
                            correction.evaluate(*changed)


@pytest.mark.fault(5, "NaN and infinities in JSON and pyhf workspaces, read and written")
@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_json(tmp_path, attempts, word) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'{{"a": [1.0, {word}]}}')
    for read in (read_json, read_workspace):
        with attempts(f"{read.__name__} {word}"), pytest.raises(SelfcalError, match=word):
            read(path)
    with attempts(f"write {word}"), pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float(word)})
