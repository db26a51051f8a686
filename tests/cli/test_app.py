"""Exit codes, messages and what is (not) written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import selfcal as package
from selfcal.cli.app import app
from selfcal.cli.examples import EXAMPLES
from selfcal.config.shipped import shipped_path

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(package.__file__).parents[1])}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_help_and_version(selfcal):
    answer = selfcal("--help")
    assert answer.code == 0
    verbs = ("init", "validate", "generate", "train", "calibrate", "fit", "export", "report", "run", "study")
    assert all(f"\n  {verb} " in answer.out for verb in verbs)
    assert selfcal("--version").out == f"selfcal {package.__version__}\n"


def verbs(group, prefix: str = ""):
    """Every verb with its command, ``study run`` and the like included; the program itself is ''."""
    yield prefix, group
    for name, command in getattr(group, "commands", {}).items():
        yield from verbs(command, f"{prefix} {name}".strip())


def test_every_verb_ends_its_help_with_examples_that_it_understands(selfcal):
    root = typer.main.get_command(app)
    commands = dict(verbs(root))
    assert set(commands) - {"study"} == set(EXAMPLES)
    for verb, written in EXAMPLES.items():
        shown = selfcal(*verb.split(), "--help").out
        for line, _ in written:
            assert f"\n    {line}\n" in shown
            words = line.partition("&&")[0].partition("selfcal ")[2].split()
            name = max((one for one in commands if f"{' '.join(words)} ".startswith(f"{one} ")), key=len)
            assert verb in ("", name)
            command = commands[name]
            context = typer.Context(command, info_name=name)
            command.make_parser(context).parse_args(words[len(name.split()) :])


def test_the_verbs_are_listed_in_the_order_of_use(selfcal):
    shown = [line.split()[0] for line in selfcal("--help").out.partition("Commands:")[2].splitlines() if line]
    assert shown[:4] == ["init", "inspect", "validate", "run"]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--nonsense"),
        ("nonsense",),
        ("run", "--seed", "x"),
        ("run", "--seed", "-1"),
        ("init",),
        ("run",),
    ],
)
def test_usage_errors_exit_with_2(selfcal, words):
    answer = selfcal(*words)
    assert answer.code == 2
    assert answer.err
    assert "Traceback" not in answer.err


def test_wrong_key_names_file_line_key_and_nearest(selfcal, project):
    path = project / "run.yaml"
    path.write_text(path.read_text() + "training:\n  epoch: 3\n")
    answer = selfcal("run", "run.yaml")
    assert answer.code == 2
    assert "run.yaml, line 6, key 'training.epoch'" in answer.err
    assert "did you mean 'epochs'?" in answer.err
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: x\nname: y\n", "line 2, key 'name'"), ("name: !!python/name:os.system\n", "unknown tag")],
)
def test_duplicate_keys_and_tags_are_refused(selfcal, tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    answer = selfcal("run", tmp_path / "x.yaml")
    assert answer.code == 2
    assert message in answer.err


def test_errors_as_json(selfcal, project):
    answer = selfcal("run", "run.yaml", "--set", "fit.pt_gev_edges=[3, 2]", "--json")
    assert answer.code == 2
    error = json.loads(answer.out)["error"]
    assert (error["kind"], error["exit_code"]) == ("ConfigError", 2)
    assert error["where"] == "--set fit.pt_gev_edges=[3, 2], key 'fit.pt_gev_edges'"


def test_debug_shows_the_traceback(selfcal, project):
    assert "Traceback" not in selfcal("run", "none.yaml").err
    answer = selfcal("run", "none.yaml", "--debug")
    assert answer.code == 2
    assert "Traceback" in answer.err


def test_unexpected_errors_are_one_line_with_exit_1(selfcal, project, monkeypatch):
    def explode(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("selfcal.cli.execution.load_run", explode)
    answer = selfcal("run", "run.yaml")
    assert answer.code == 1
    assert answer.err.startswith("selfcal: unexpected RuntimeError: boom\n")
    assert "--debug" in answer.err
    assert "Traceback" not in answer.err
    assert "Traceback" in selfcal("run", "run.yaml", "--debug").err


def test_dry_run_shows_everything_and_writes_nothing(selfcal, project):
    before = tree(project)
    answer = selfcal("run", "run.yaml", "--dry-run", "--set", "training.epochs=3", "--seed", "9")
    assert answer.code == 0
    assert tree(project) == before
    assert "  epochs: 3\n" in answer.out
    assert "seed: 9\n" in answer.out
    assert "300 jets in 1 file(s)" in answer.out
    for stage in ("validate", "train", "calibrate", "fit", "export", "report"):
        assert f"\n{stage} " in answer.out
    assert "\ngenerate " not in answer.out.partition("# stages")[2]


def test_dry_run_as_json(selfcal, project):
    plan = json.loads(selfcal("run", "run.yaml", "--dry-run", "--json").out)
    assert [row["jets"] for row in plan["inputs"]] == [300, 300]
    assert plan["stages"][0] == {
        "name": "validate",
        "state": "not done yet",
        "runs": True,
        "files": ["results/validation.json"],
    }
    assert plan["configuration"]["name"] == "small"


def test_a_missing_file_is_a_data_error_and_nothing_is_written(selfcal, project):
    (project / "files" / "sim.h5").unlink()
    answer = selfcal("run", "run.yaml")
    assert answer.code == 3
    assert "no file of dataset 'sim' found" in answer.err
    assert not (project / "runs").exists()


def test_validate_runs_once_and_leaves_a_record(selfcal, project):
    answer = selfcal("validate", "run.yaml")
    assert answer.code == 0, answer.err
    report = json.loads((project / "runs" / "small" / "results" / "validation.json").read_text())
    assert [row["jets"] for row in report["datasets"]] == [300, 300]
    provenance = json.loads((project / "runs" / "small" / "provenance.json").read_text())
    assert len(provenance["inputs_sha256"]) == 2
    before = tree(project)
    answer = selfcal("validate", "run.yaml", "--json")
    assert json.loads(answer.out)["stages"] == [{"name": "validate", "ran": False}]
    assert "nothing to be done" in answer.err
    assert tree(project) == before


def test_resolved_configuration_repeats_the_run(selfcal, project):
    selfcal("validate", "run.yaml", "--seed", "4")
    resolved = project / "runs" / "small" / "config.resolved.yaml"
    assert yaml.safe_load(resolved.read_text())["seed"] == 4
    answer = selfcal("validate", resolved)
    assert answer.code == 0, answer.err
    assert "nothing to be done" in answer.err


def test_a_verb_whose_input_is_missing_names_the_verb_to_run(selfcal, project):
    answer = selfcal("train", "run.yaml")
    assert answer.code == 2
    assert "'train' needs 'validate' first (not done yet)" in answer.err
    assert not (project / "runs").exists()
    answer = selfcal("generate", "run.yaml")
    assert answer.code == 2
    assert "no stage 'generate'" in answer.err


def test_resume_needs_a_run(selfcal, project):
    answer = selfcal("run", "run.yaml", "--resume")
    assert answer.code == 2
    assert "no run to resume" in answer.err


def test_quiet_prints_nothing(selfcal, project):
    answer = selfcal("validate", "run.yaml", "-q")
    assert (answer.code, answer.out, answer.err) == (0, "", "")


@pytest.mark.fault(12, "a second command on a run in use")
def test_a_run_in_use_is_refused(selfcal, project):
    script = (
        "import sys, time\nfrom selfcal.run.directory import RunDirectory\n"
        "with RunDirectory('runs/small').lock():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            answer = selfcal("validate", "run.yaml")
        finally:
            process.kill()
    assert answer.code == 2
    assert f"process (id {process.pid})" in answer.err


def test_a_folder_of_something_else_is_left_alone(selfcal, project):
    answer = selfcal("validate", "run.yaml", "--out", "cards")
    assert answer.code == 2
    assert "holds no run" in answer.err
    assert sorted(path.name for path in (project / "cards").iterdir()) == ["data.yaml", "sim.yaml"]


def test_init_writes_a_project_that_loads_and_never_overwrites(selfcal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert selfcal("init", "mine", "--dry-run").code == 0
    assert not Path("mine").exists()
    assert selfcal("init", "mine").code == 0
    expected = {path.name for path in (shipped_path("data_cards") / "demo").glob("*.yaml")}
    assert {path.name for path in Path("mine/data_cards/demo").iterdir()} == expected
    before = tree(tmp_path)
    answer = selfcal("init", "mine")
    assert answer.code == 2
    assert "refusing to overwrite" in answer.err
    assert tree(tmp_path) == before
    monkeypatch.chdir(tmp_path / "mine")
    answer = selfcal("run", "configs/demo.yaml", "--dry-run")
    assert answer.code == 0
    assert "../../data_cards/demo/sim_dijet.yaml" in answer.out


def test_schema_is_printed_or_written(selfcal, tmp_path):
    printed = json.loads(selfcal("schema", "card").out)
    assert printed["title"] == "DataCard"
    target = tmp_path / "card.json"
    assert selfcal("schema", "card", "--out", target).code == 0
    assert json.loads(target.read_text()) == printed
    assert selfcal("schema", "card", "--out", target).code == 2
    assert selfcal("schema", "cards").code == 2


def test_the_installed_program_ends_with_the_exit_code(project):
    command = [
        sys.executable,
        "-c",
        "import sys; from selfcal.cli.app import main; sys.exit(main())",
        "run",
        "none.yaml",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("selfcal: error: file not found\n  where:    none.yaml\n")


def test_help_does_not_import_the_heavy_libraries():
    script = (
        "import sys\nfrom selfcal.cli.app import main\nmain(['run', '--help'])\n"
        "print(sorted({'torch', 'pyhf', 'matplotlib', 'h5py', 'zuko'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"


def test_a_region_without_data_is_refused_before_anything_is_done(selfcal, project):
    configuration = project / "run.yaml"
    values = yaml.safe_load(configuration.read_text())
    values["data"]["cards"] = [name for name in values["data"]["cards"] if "sim" in name]
    configuration.write_text(yaml.safe_dump(values))
    before = tree(project)
    for words in (("--dry-run",), ()):
        answer = selfcal("run", configuration, *words)
        assert answer.code == 2
        assert "control region(s) without both simulation and data: r\n" in answer.err
    assert tree(project) == before
