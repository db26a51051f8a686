"""Are wrong changes of the code found by the tests? ``make mutation``, or in steps:

``python -m bench.mutation cover [TEST ...]`` runs the tests of the mutated folders (or the given ones again)
with coverage.py and notes which test runs which line;
``python -m bench.mutation run --seed 1 --count 200`` draws mutants (``bench/mutants.py``), runs for each the
tests of the mirrored folder that run its line, fastest first, and the rules of the source, until one fails;
what is done stays done;
``python -m bench.mutation check --seed 1`` runs every test that found a mutant on the right code: all pass;
``python -m bench.mutation table --seed 1`` prints what was found.

A line that runs only while its module is imported (a constant, a default) or in a fixture has no test of its
own: there, all tests that run any line of the module are taken. At most ``TESTS_S`` seconds of tests run for
one mutant, so "survived" may be said of one that slower tests would find, never the other way round.
Every mutant lives in a copy of the tree under ``.mutation`` and is tested in a child process that is forked
after the heavy libraries are loaded. One that takes several times the time of its tests counts as found
(``timeout``).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import coverage
import pytest

from bench.command_line import run_script
from bench.mutants import FOLDERS, Mutant, draw_sample, mutated

ROOT = Path(__file__).parents[1]
STATE = Path(".mutation")
TESTS_S = 30.0
"""CPU seconds of tests at most for one mutant, as they took under coverage.py."""
SOURCE_RULES = [
    "tests/test_layout.py::test_dataclasses_are_frozen",
    "tests/test_layout.py::test_no_list_is_cut_to_the_length_of_another",
]
"""Tests that read the source of all modules: coverage.py does not see that they look at a line."""
PRELOADED = (
    *(
        "awkward",
        "beartype",
        "correctionlib",
        "h5py",
        "hypothesis",
        "iminuit",
        "jaxtyping",
        "matplotlib.pyplot",
    ),
    *("numpy", "ot", "pydantic", "pyhf", "safetensors.torch", "scipy.optimize", "scipy.stats", "torch"),
    *("torch.distributed", "typer", "uproot", "yaml", "zuko"),
)
MEMORY_BYTES = 16 * 2**30
"""Address space of a mutant: what wants more has lost its way."""


class FirstFailure:
    """What failed first, and for what reason, left in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test failed."""
        if report.failed and not self.path.exists():
            self.path.write_text(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A test module cannot be imported any more."""
        if report.failed and not self.path.exists():
            self.path.write_text(f"{report.nodeid} (import)")


def copy_tree(state: Path) -> Path:
    """The files of the working tree, in a folder of their own, with ``shared`` beside it if it is there.

    What is there already stays, with its compiled files, which save seconds for each mutant.
    """
    tree = state / "tree"
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = set(subprocess.check_output(listing, cwd=ROOT, text=True).split("\0"))
    for path in list(tree.rglob("*")):
        known = path.relative_to(tree).as_posix() in names or "__pycache__" in path.parts
        if path.is_file() and not known:
            path.unlink()
    for source, copy in ((ROOT / name, tree / name) for name in sorted(names)):
        if source.is_file() and not (copy.exists() and copy.read_bytes() == source.read_bytes()):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
    shared = ROOT.parent / "shared"
    if shared.exists() and not (state / "shared").exists():
        (state / "shared").symlink_to(shared.resolve())
    return tree


def environment(tree: Path) -> dict[str, str]:
    """Of the tests of the copy: its own code first."""
    return os.environ | {"PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def cover(state: Path, tests: list[str]) -> None:
    """Run tests under coverage.py with a context per test; what it noted of earlier runs of others stays."""
    state.mkdir(exist_ok=True)
    tree = copy_tree(state)
    paths = {
        "COVERAGE_FILE": str((state / "lines" / "coverage").resolve()),
        "SELFCAL_TEST_SECONDS": str((state / "seconds.json").resolve()),
    }
    (state / "lines").mkdir(exist_ok=True)
    for folder in tests or [f"tests/{folder}" for folder in FOLDERS]:
        command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-p", "bench.covering_tests"]
        command += ["-q", "-m", "not long", "-p", "no:xdist", folder]
        subprocess.run(command, cwd=tree, env=environment(tree) | paths, check=True)


def lines_of_tests(state: Path) -> dict[str, dict[str, set[int]]]:
    """For each module (``selfcal/...``): the lines of each test; the empty name is what runs at import."""
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for path in sorted((state / "lines").iterdir()):
        data = coverage.CoverageData(str(path))
        data.read()
        for measured in data.measured_files():
            module = "selfcal/" + measured.rpartition("/selfcal/")[2]
            for line, contexts in data.contexts_by_lineno(measured).items():
                for context in contexts:
                    found[module][context].add(line)
    return found


def tests_for(mutant: Mutant, lines: dict[str, dict[str, set[int]]], seconds: dict[str, float]) -> list[str]:
    """Tests of the mirrored folder that run the line, the fastest first; see the module."""
    folder = f"tests/{mutant.module.split('/')[1]}/"
    of_module = {c: found for c, found in lines.get(mutant.module, {}).items() if c.startswith(folder)}
    running = {context for context, found in of_module.items() if mutant.line in found}
    if not any(context.endswith("|run") for context in running):
        running = set(of_module)
    nodes = {context.rpartition("|")[0] for context in running} & set(seconds)
    chosen, total = [], 0.0
    for node in sorted(nodes, key=lambda node: (seconds[node], node)):
        total += seconds[node]
        if chosen and total > TESTS_S:
            break
        chosen.append(node)
    return chosen


def try_tests(tree: Path, tests: list[str], expected_s: float) -> dict[str, Any]:
    """Run tests on the copy in a forked child; what became of the mutant, and in how many CPU seconds."""
    failure, log = tree.parent / "failure.txt", tree.parent / "last.log"
    failure.unlink(missing_ok=True)
    cpu_s = int(3 * expected_s + 20)
    begin = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if child == 0:
        _run_child(tree, tests, failure, log, cpu_s)
    status: int | None = None
    while status is None:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = code
        elif time.monotonic() - begin > 30 * cpu_s:  # it waits for something: the machine may be busy
            os.killpg(child, signal.SIGKILL)
        else:
            time.sleep(0.05)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    killed_by = failure.read_text() if failure.exists() else ""
    if os.WIFSIGNALED(status):
        timeout = os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
        outcome = "timeout" if timeout else f"signal {os.WTERMSIG(status)}"
    else:
        code = os.WEXITSTATUS(status)
        outcome = {0: "survived", 1: "killed", 2: "killed", 4: "killed"}.get(code, f"exit {code}")
    return {"outcome": outcome, "killed_by": killed_by, "cpu_s": round(spent, 1)}


def _run_child(tree: Path, tests: list[str], failure: Path, log: Path, cpu_s: int) -> None:
    """Never returns."""
    code = 3
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(environment(tree))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False
        os.chdir(tree)
        sys.path[:] = [str(tree.resolve()), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.split(".")[0] in ("selfcal", "tests", "bench")]:
            del sys.modules[name]
        import selfcal

        assert Path(selfcal.__file__).is_relative_to(tree), "the tests would not see the mutant"
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is loaded already
        code = int(pytest.main([*options, *tests], plugins=[FirstFailure(failure.resolve())]))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(state: Path, seed: int, count: int, folders: Iterable[str], again: Iterable[str]) -> None:
    """Test a sample; each result is a line of ``results-SEED.jsonl``, and what is there is not done again."""
    for name in PRELOADED:
        __import__(name)
    tree = copy_tree(state)
    lines, seconds = lines_of_tests(state), json.loads((state / "seconds.json").read_text())
    if (found := try_tests(tree, SOURCE_RULES, TESTS_S))["outcome"] != "survived":
        sys.exit(f"without any change the tests do not pass: {found}, see {state / 'last.log'}")
    path = state / f"results-{seed}.jsonl"
    known = {result["key"] for result in read_results(path) if result["outcome"] not in again}
    sample = draw_sample(ROOT, count, seed)
    random.Random(seed).shuffle(sample)  # what a stopped run has done is a sample, too
    for number, mutant in enumerate(sample, 1):
        if mutant.key in known or mutant.module.split("/")[1] not in folders:
            continue
        tests = tests_for(mutant, lines, seconds)
        source = (ROOT / mutant.module).read_text(encoding="utf-8")
        result: dict[str, Any] = {"outcome": "not run by any test", "killed_by": "", "cpu_s": 0.0}
        if tests:
            expected_s = sum(seconds[node] for node in tests)
            result = try_mutant(tree, mutant, source, [*tests, *SOURCE_RULES], expected_s)
        entry = {"key": mutant.key, **asdict(mutant), "tests": len(tests), **result}
        with path.open("a") as handle:
            handle.write(json.dumps(entry) + "\n")
        what = f"{result['outcome']} {result['killed_by']} {result['cpu_s']} s"
        print(f"{number}/{len(sample)} {mutant.key}: {what}", flush=True)


def try_mutant(
    tree: Path, mutant: Mutant, source: str, tests: list[str], expected_s: float
) -> dict[str, Any]:
    """Put the mutant into the copy, test it, and put the right code back."""
    target = tree / mutant.module
    text = mutated(source, mutant)
    assert text is not None
    try:
        _write_alone(target, text)
        return try_tests(tree, tests, expected_s) | {"change": change_of(source, text)}
    finally:
        _write_alone(target, source)


def _write_alone(target: Path, text: str) -> None:
    """A module without compiled files: those of the right code must not stand in for the mutant."""
    target.write_text(text, encoding="utf-8")
    for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*"):
        compiled.unlink()


def check_killers(state: Path, seed: int) -> None:
    """Every test that found a mutant must pass on the right code, in the same kind of process."""
    results = read_results(state / f"results-{seed}.jsonl")
    tests = sorted({result["killed_by"].removesuffix(" (import)") for result in results} - {""})
    found = try_tests(copy_tree(state), tests, 600.0)
    if found["outcome"] != "survived":
        sys.exit(f"{found['killed_by']} fails without any change: what it found does not count")
    print(f"{len(tests)} tests that found mutants pass on the right code")


def change_of(source: str, text: str) -> list[str]:
    """The line before and after."""
    before, after = source.splitlines(), text.splitlines()
    for old, new in zip(before, after, strict=False):
        if old != new:
            return [old.strip(), " ".join(new.split())]
    return ["", ""]


def read_results(path: Path) -> list[dict[str, Any]]:
    """The last result of every mutant."""
    if not path.exists():
        return []
    results = map(json.loads, path.read_text().splitlines())
    return list({result["key"]: result for result in results}.values())


def print_table(state: Path, seed: int, everything: bool) -> None:
    """Share found per folder, and the mutants that were not (or all)."""
    results = read_results(state / f"results-{seed}.jsonl")
    missed = ("survived", "not run by any test")
    by_folder: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        outcome = "missed" if result["outcome"] in missed else "found"
        by_folder[result["module"].split("/")[1]][outcome] += 1
        by_folder["all"][outcome] += 1
    print("| folder | mutants | found | share |\n|---|---|---|---|")
    for folder in (*FOLDERS, "all"):
        found, total = by_folder[folder]["found"], by_folder[folder].total()
        print(f"| {folder} | {total} | {found} | {found / max(total, 1):.3f} |")
    print(f"\n{sum(result['cpu_s'] for result in results):.0f} CPU seconds\n")
    print("| module | line | operator | before | after | outcome |\n|---|---|---|---|---|---|")
    for result in sorted(results, key=lambda result: (result["module"], result["line"])):
        if everything or result["outcome"] in missed:
            before, after = (f"`{text}`".replace("|", "\\|") for text in result.get("change", ["", ""]))
            outcome = " by ".join(filter(None, (result["outcome"], result["killed_by"])))
            cells = (result["module"], str(result["line"]), result["operator"], before, after, outcome)
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    """The command line."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--state", type=Path, default=STATE, help="folder of the copy and the results")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("cover").add_argument("tests", nargs="*", help="test files or folders")
    for name in ("run", "check", "table"):
        verb = verbs.add_parser(name)
        verb.add_argument("--seed", type=int, default=1)
        if name == "run":
            verb.add_argument("--count", type=int, default=200)
            verb.add_argument("--folders", nargs="*", default=FOLDERS, help="only the sample's mutants there")
            verb.add_argument("--again", nargs="*", default=(), help="outcomes that are tried once more")
        elif name == "table":
            verb.add_argument("--all", action="store_true", help="the mutants that were found, too")
    given = parser.parse_args()
    given.state = given.state.resolve()  # a mutant is tested in another working directory
    if given.verb == "cover":
        cover(given.state, given.tests)
    elif given.verb == "run":
        run(given.state, given.seed, given.count, given.folders, given.again)
    elif given.verb == "check":
        check_killers(given.state, given.seed)
    else:
        print_table(given.state, given.seed, given.all)


if __name__ == "__main__":
    run_script(main)
