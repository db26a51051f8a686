"""What Pythia 8 is told for each control region.

Settings are those of Pythia 8.317. Shared choices: 13 TeV pp, A14 tune
(``Tune:pp = 21``), particles with c*tau below 1 m decay (K_S, Lambda included),
multiparton interactions on. ``SpaceShower:pTmin = 2`` stops initial-state
radiation at 2 GeV instead of 0.5 GeV: it costs a few soft tracks of underlying
event (no change in jets above 15 GeV) and halves the time per event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfcal.errors import ConfigError

_SHARED: tuple[str, ...] = (
    "Beams:eCM = 13000",
    "Print:quiet = on",
    "Check:event = off",
    "ParticleDecays:limitTau0 = on",
    "ParticleDecays:tau0Max = 1000",
    "SpaceShower:pTmin = 2.",
)

_OFF_DIAGONAL_AND_LIGHT = ("ud", "us", "ub", "cd", "cb", "td", "ts", "tb")


@dataclass(frozen=True)
class Process:
    """One physics process.

    Attributes
    ----------
    name : the word used in configurations.
    settings : Pythia settings on top of the shared ones.
    forced : parameters written outside their allowed range, (name, value).
    two_b_hadrons : whether only jets that hold two weakly decaying b hadrons are kept.
    description : what the control region is for.
    """

    name: str
    settings: tuple[str, ...]
    description: str
    forced: tuple[tuple[str, float], ...] = ()
    two_b_hadrons: bool = False


PROCESSES: dict[str, Process] = {
    process.name: process
    for process in (
        Process(
            "ttbar_emu",
            (
                "Top:gg2ttbar = on",
                "Top:qqbar2ttbar = on",
                "24:onMode = off",
                "24:onPosIfAny = 11",
                "24:onNegIfAny = 13",
            ),
            "top pairs to electron, muon and two b jets: b-rich",
        ),
        Process(
            "ttbar_ljets",
            (
                "Top:gg2ttbar = on",
                "Top:qqbar2ttbar = on",
                "24:onMode = off",
                "24:onPosIfAny = 11 13 15",
                "24:onNegIfAny = 1 2 3 4 5",
            ),
            "top pairs to one lepton and jets: mixture with charm from W decays",
        ),
        Process(
            "w_charm",
            (
                "WeakBosonAndParton:qg2Wq = on",
                "PhaseSpace:pTHatMin = 25.",
                "24:onMode = off",
                "24:onIfAny = 13",
            ),
            "W and charm; V_cs alone stands for opposite-sign minus same-sign events: charm-rich",
            tuple((f"StandardModel:V{element}", 1e-6) for element in _OFF_DIAGONAL_AND_LIGHT),
        ),
        Process(
            "dijet",
            (
                "HardQCD:all = on",
                "PhaseSpace:pTHatMin = 20.",
                "PhaseSpace:bias2Selection = on",
                "PhaseSpace:bias2SelectionPow = 4.",
                "PhaseSpace:bias2SelectionRef = 20.",
            ),
            "two jets, pT spectrum flattened by pT^4 (the event weight undoes it): light-rich",
        ),
        Process(
            "z_tautau",
            (
                "WeakSingleBoson:ffbar2gmZ = on",
                "PhaseSpace:mHatMin = 60.",
                "23:onMode = off",
                "23:onIfAny = 15",
                # single-tau decay matrix elements with the mean polarisation of the Z:
                # the correlated ones take ten times as long
                "TauDecays:mode = 3",
                "TauDecays:tauPolarization = -0.15",
                "15:onMode = on",
                "15:offIfAny = 11 13",
            ),
            "Z to two hadronic taus: tau-rich",
        ),
        Process(
            "gluon_to_bb",
            (
                "HardQCD:gg2gg = on",
                "HardQCD:qg2qg = on",
                "PhaseSpace:pTHatMin = 40.",
                "PhaseSpace:bias2Selection = on",
                "PhaseSpace:bias2SelectionPow = 4.",
                "PhaseSpace:bias2SelectionRef = 40.",
            ),
            "gluons that split to two b quarks inside one jet: b jets of another kind than those of tops",
            two_b_hadrons=True,
        ),
        Process("minimum_bias", ("SoftQCD:nonDiffractive = on",), "pool from which pile-up is drawn"),
    )
}

_RESERVED = ("Random:", "Beams:", "Print:", "Main:", "Next:", "Init:", "ParticleDecays:")


def process_named(name: str) -> Process:
    """The process of that name; :class:`ConfigError` if there is none."""
    if name not in PROCESSES:
        raise ConfigError(
            f"unknown process '{name}'", where="generate.process", expected=f"one of {sorted(PROCESSES)}"
        )
    return PROCESSES[name]


def ordered_settings(process: Process, pythia_settings: tuple[str, ...]) -> tuple[str, ...]:
    """All settings in reading order: tunes first, because a tune resets what it covers.

    Raises
    ------
    ConfigError
        If a user's setting would change seed, beams or what reproducibility rests on.
    """
    for setting in pythia_settings:
        if setting.strip().startswith(_RESERVED):
            raise ConfigError(
                f"Pythia setting '{setting}' is not for users",
                where="generate.pythia_settings",
                expected=f"no setting that starts with {', '.join(_RESERVED)}",
                fix="remove it; seeds are given by `seed`",
            )
    tunes = tuple(s.strip() for s in pythia_settings if s.strip().startswith("Tune:"))
    others = tuple(s.strip() for s in pythia_settings if not s.strip().startswith("Tune:"))
    return (*(tunes or ("Tune:pp = 21",)), *_SHARED, *process.settings, *others)


def start_pythia(process: Process, pythia_settings: tuple[str, ...], pythia_seed: int) -> Any:
    """An initialised ``pythia8mc.Pythia``.

    Raises
    ------
    ConfigError
        If Pythia is not installed, does not know a setting or does not initialise with it.
    """
    try:
        import pythia8mc
    except ImportError as error:
        raise ConfigError(
            "pythia8mc is not installed",
            where="generate",
            expected="the `generate` extra",
            fix="pip install 'selfcal[generate]'",
        ) from error
    pythia = pythia8mc.Pythia(xmlDir="", printBanner=False)
    seed = ("Random:setSeed = on", f"Random:seed = {pythia_seed}")
    for setting in (*ordered_settings(process, pythia_settings), *seed):
        if not pythia.readString(setting, warn=False):
            raise ConfigError(
                f"Pythia does not accept '{setting}'",
                where="generate.pythia_settings",
                expected="name = value as in the Pythia 8 manual",
            )
    for name, value in process.forced:
        pythia.settings.forceParm(name, value)
    if not pythia.init():
        raise ConfigError(
            f"Pythia does not initialise for process '{process.name}'",
            where="generate.pythia_settings",
            expected="settings that go together",
            fix="remove the settings one by one, or switch Print:quiet off in a script of your own",
        )
    return pythia
