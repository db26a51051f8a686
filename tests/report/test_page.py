"""The page as a browser reads it: complete, self-contained, escaped, traceable."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from selfcal.errors import DataError
from selfcal.report.stage import build_report

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Start tags with attributes, the text inside each element kind, and the cells of every table."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.cells: dict[str, list[list[tuple[str, str]]]] = {}
        self.table = ""
        self.cell_value = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = found["id"] or ""
            self.cells[self.table] = []
        elif tag == "tr":
            self.cells[self.table].append([])
        elif tag == "td":
            self.cell_value = found["data-value"] or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))
            if self.open[-1] == "td":
                self.cells[self.table][-1].append((data, self.cell_value))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def text_of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def rows_of(page: Page, table: str) -> list[list[tuple[str, str]]]:
    return [row for row in page.cells[table] if row]


def test_html_nests_and_every_id_is_unique(report, hostile_report):
    for html in (report.html, hostile_report.html):
        page = Page(html)
        assert page.open == []
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
        assert references
        assert set(references) <= set(ids)


def test_every_figure_stands_in_the_page_and_on_disk(report):
    names = {path.stem for path in report.written if path.suffix == ".png"}
    flavours = ("b", "c", "light", "tau")
    assert names == {
        *(f"scale_factors_{flavour}" for flavour in flavours),
        *(f"scale_factors_continuous_{flavour}" for flavour in flavours),
        *(f"discriminant_{n}_{r}" for n, r in enumerate(("dijet", "ttbar_emu", "w_charm", "z_tautau"))),
        "closure", "composition", "correlation", "evaluation", "pulls_nuisances", "pulls_truth", "breakdown",
        "scan_70",
        *(f"impacts_{flavour}" for flavour in flavours),
        "roc", "roc_before_after", "training",
    }  # fmt: skip
    page = Page(report.html)
    assert page.count("svg") == page.count("figure") == len(names)
    starts = {".png": b"\x89PNG", ".pdf": b"%PDF"}
    held = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
    assert set(held) == {f"{name}{suffix}" for name in names for suffix in starts}
    for path in report.written[:-1]:
        assert path.parent == report.path / "figures"
        assert path.read_bytes().startswith(starts[path.suffix])
        assert f"figures/{path.name}" in page.text_of("code")
        assert base64.b64decode(held[path.name].partition("base64,")[2]) == path.read_bytes()
    labels = " ".join(page.text_of("text"))
    assert labels.count("Simulation") >= len(names)
    assert "[GeV]" in "".join(page.text_of("tspan"))


def test_nothing_is_requested_from_outside(report, hostile_report):
    for html in (report.html, hostile_report.html):
        page = Page(html)
        assert page.count("link") == page.count("iframe") == page.count("img") == page.count("object") == 0
        for tag, attributes in page.tags:
            for key in ("src", "href", "xlink:href", "data", "action", "srcset"):
                value = attributes.get(key)
                allowed = ("#", "data:image/png;base64,", "data:application/pdf;base64,")
                assert value is None or value.startswith(allowed), (tag, key)
        assert re.findall(r"https?://", html) == []
        assert "@import" not in html


def test_policy_admits_the_pages_own_script_and_no_other(report):
    page = Page(report.html)
    assert page.count("script") == 1
    digest = base64.b64encode(hashlib.sha256("".join(page.text_of("script")).encode()).digest()).decode()
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]
    assert f"script-src 'sha256-{digest}'" in policies[0]


@pytest.mark.fault(10, "HTML and scripts as names of taggers and regions in the report")
def test_names_are_escaped_in_html_and_in_svg(small_report, hostile_report, hostile_name):
    """Neither an element nor a handler more than in the same report with harmless names."""
    ordinary, hostile = Page(small_report.html), Page(hostile_report.html)
    for tag in ("script", "img", "svg", "figure", "table"):
        assert hostile.count(tag) == ordinary.count(tag)
    assert not [key for _, attributes in hostile.tags for key in attributes if key.startswith("on")]
    shown = hostile_name.replace("\x07", "\ufffd")[:40]
    drawn = hostile.text_of("text") + hostile.text_of("tspan")
    assert sum(shown in text for text in drawn) >= 3
    assert f"Calibration of {hostile_name}" in hostile.text_of("h1")
    assert hostile_name in {row[0][1] for row in rows_of(hostile, "table_closure")}
    assert all(re.fullmatch(r"[A-Za-z0-9_]+\.(png|pdf)", path.name) for path in hostile_report.written[:-1])


def test_scale_factor_tables_carry_the_numbers_of_the_file(report):
    content = json.loads((report.path / "results/scale_factors.json").read_text())
    pulls = json.loads((report.path / "results/scale_factors_against_truth.json").read_text())["pulls"]
    pull_of = {pull["row"]: pull["pull"] for pull in pulls}
    page = Page(report.html)
    seen = 0
    for cells in rows_of(page, "table_working_point") + rows_of(page, "table_continuous"):
        index = int(cells[0][1])
        row = content["rows"][index]
        groups = ("map", "composition", "mc_statistics")
        wanted = [
            row["value"], row["stat"], *(row["syst"].get(group) for group in groups), row["total"],
            row["truth"]["value"], row["truth"]["error"], pull_of.get(index), row["expected_passing"],
        ]  # fmt: skip
        for (text, exact), value in zip(cells[6:], wanted, strict=True):
            if value is None:
                assert (text, exact) == ("–", "")
            else:
                assert float(exact) == value
                assert abs(float(text) - value) <= 0.5001 * 10.0 ** -len(text.partition(".")[2])
        assert cells[1][0] == row["flavour"]
        assert cells[5][0] == row["status"]
        seen += 1
    assert seen == len(content["rows"])


def test_closure_table_puts_held_out_rows_first_and_colours_by_significance(report):
    rows = json.loads((report.path / "results/closure.json").read_text())["rows"]
    cells = rows_of(Page(report.html), "table_closure")
    wanted = sorted(rows, key=lambda row: not row["held_out"])
    assert [float(line[7][1]) for line in cells] == [row["ratio_uncalibrated"] for row in wanted]
    assert [float(line[8][1]) for line in cells] == [row["ratio_calibrated"] for row in wanted]
    assert [line[1][0] for line in cells] == [
        "held out" if row["held_out"] else "in the fit" for row in wanted
    ]
    styles = re.findall(
        r'<td class="number sigma(\d)" data-value="([\d.]+)">[\d.]+</td><td class="number st', report.html
    )
    assert len(styles) == len(wanted)
    for (style, value), row in zip(styles, wanted, strict=True):
        assert float(value) == row["ratio_uncalibrated"]
        assert int(style) == min(3, int(abs(row["ratio_uncalibrated"] - 1) / row["error"]))


def test_the_gain_of_the_regression_is_shown_where_there_is_one(report, small_report):
    rows = json.loads((report.path / "results/tagger_metrics.json").read_text())["response"]
    cells = rows_of(Page(report.html), "table_response")
    assert [line[0][0] for line in cells] == ["b", "light"]
    for line, row in zip(cells, rows, strict=True):
        shown = [float(cell[1]) for cell in line[1:]]
        scales = [row["before"]["scale"], row["after"]["scale"]]
        widths = [row["before"]["resolution"], row["after"]["resolution"]]
        ratio = [row["resolution_ratio"], row["resolution_ratio_error"]]
        assert shown == [row["jets"], *scales, *widths, *ratio]
    assert "table_response" not in small_report.html


def test_unmeasured_and_extrapolated_rows_are_said_loudly(report):
    alarms = re.findall(
        r'<p class="warning" role="alert"><strong>Attention:</strong> ([^<]+)</p>', report.html
    )
    assert len(alarms) == 3
    assert "closure fails in 1 of 60 rows, most in light jets of ttbar_ljets" in alarms[2]
    assert alarms[0].startswith("18 scale factors are extrapolated")
    assert alarms[1].startswith("9 scale factors are unmeasured")
    assert "tau: 70–250 GeV" in alarms[1]


def test_every_figure_and_table_names_its_file(report):
    captions = re.findall(r"<(figcaption|caption)>(.*?)</\1>", report.html, re.DOTALL)
    page = Page(report.html)
    assert len(captions) == page.count("figure") + page.count("table")
    listed = {row[0][0]: row for row in rows_of(page, "table_files")}
    for name, row in listed.items():
        content = (report.path / name).read_bytes()
        assert row[1][1:] + row[2][:1] == (str(len(content)), hashlib.sha256(content).hexdigest())
    without = 0
    for _, caption in captions:
        files = re.findall(r'<span class="source">Source: (.*?)</span>', caption)
        names = re.findall(r"<code>(.*?)</code>", "".join(files))
        assert set(names) <= set(listed)
        without += not names
    assert without == 1, "only the table of files itself has no source"


def test_the_map_and_the_fit_stand_side_by_side(report):
    assert "fit − map" in report.html
    assert "χ² 12.5 / 10, p = 0.253" in report.html


def test_two_jets_stand_beside_single_jets_and_the_fit_of_all_regions(report):
    factors = json.loads((report.path / "results/scale_factors.json").read_text())["rows"]
    lines = rows_of(Page(report.html), "table_two_jets")
    wanted = [row for row in factors if row["flavour"] == "b" and row["kind"] == "working_point"]
    assert len(lines) == len(wanted)
    for cells, row in zip(lines, wanted, strict=True):
        assert [float(cell[1]) for cell in cells[4:]] == [
            row["value"], row["total"], row["value"], 2 * row["total"], row["value"], row["total"],
        ]  # fmt: skip
    assert "from 1234 pairs of jets" in report.html


def test_what_data_made_of_the_widths_of_residuals_is_a_table(report):
    scale = json.loads((report.path / "results/fit.json").read_text())["residual_scale"]
    lines = rows_of(Page(report.html), "table_residual_scale")
    found = {line[0][0]: [float(cell[1]) for cell in line[1:]] for line in lines}
    assert found == {f: [scale["factor"][f], scale["determined"][f]] for f in ("b", "c", "light")}
    assert "Not settled" not in report.html


@pytest.mark.parametrize(("determined", "shown"), [(0.0, False), (0.4, True)])
def test_configured_widths_have_no_table_and_unsettled_ones_say_so(tmp_path, write_run, determined, shown):
    run = write_run(tmp_path / "run", small=True)
    for path in run.rglob("*"):
        if path.is_file() and path.name not in ("scale_factors.json", "fit.json"):
            path.unlink()
    content = json.loads((run / "results/fit.json").read_text())
    content["residual_scale"] |= {"determined": {"b": determined}, "settled": False}
    (run / "results/fit.json").write_text(json.dumps(content))
    build_report(run)
    page = (run / "report.html").read_text()
    assert ("table_residual_scale" in page) == shown
    assert ("Not settled" in page) == shown


def test_what_the_regions_leave_open_is_named(report):
    page = Page(report.html)
    lines = rows_of(page, "table_identifiability_map")
    assert [line[0][0] for line in lines] == [
        "null: no data determine it",
        "prior-dominated",
        "undetermined flavour",
    ]
    assert lines[0][1][0] == "shift tau/0, fraction z_tautau/tau"
    assert float(lines[1][3][1]) == 0.91
    support = {line[0][0]: line for line in rows_of(page, "table_support")}
    assert support["ttbar_ljets"][1][0] == "held out"
    assert re.findall(r'class="number sigma3" data-value="(\d+)"', report.html).count("40") == 1
    assert float(support["dijet"][6][1]) == pytest.approx(0.1)
    regions = {(line[0][0], line[2][0]): line for line in rows_of(page, "table_region_dependence")}
    # The coordinate that deviates most in its own uncertainty, not the one that deviates most.
    assert [float(cell[1]) for cell in regions["light", "dijet"][3:]] == [0.06, 0.02, 3.0]
    assert float(regions["light", "dijet"][1][1]) == 0.03
    (judged,) = rows_of(page, "table_closure_rule")
    assert [cell[0] for cell in judged[5:]] == ["no", "yes", "not passed"]
    (failure,) = rows_of(page, "table_failures")
    assert (failure[0][0], failure[1][0], float(failure[4][1])) == ("ttbar_ljets", "light", -3.4)


def test_other_simulations_are_shown_with_every_number_of_their_files(report):
    page = Page(report.html)
    factors = json.loads((report.path / "results/generators.json").read_text())["rows"]
    for cells, row in zip(rows_of(page, "table_generators"), factors, strict=True):
        assert [cells[0][0], cells[1][0]] == [row["variation"], row["flavour"]]
        pull = (row["value"] - 1) / row["stat"]
        wanted = [row["working_point"], row["pt_gev"][0], row["value"], row["stat"], pull]
        assert [float(cells[i][1]) for i in (2, 3, 5, 6, 7)] == pytest.approx(wanted)
    beyond = json.loads((report.path / "results/high_pt.json").read_text())["rows"]
    for cells, row in zip(rows_of(page, "table_high_pt"), beyond, strict=True):
        wanted = [
            row["value"],
            row["syst"].get("last_bin"),
            row["syst"].get("modelling_shower"),
            row["total"],
        ]
        assert [cell[1] for cell in cells[5:]] == ["" if value is None else str(value) for value in wanted]
        assert cells[4][0] == row["status"]


def test_scans_give_asymmetric_intervals_and_say_what_failed(report):
    lines = rows_of(Page(report.html), "table_scans")
    assert lines[0][9][0] == "no constrained minimum was found"
    assert [cell[0] for cell in lines[0][5:9]] == ["–"] * 4
    for line in lines[1:]:
        below, above = float(line[6][1]), float(line[7][1])
        assert 0 < below < above


def test_coverage_and_treated_variations_are_in_the_page(report):
    lines = rows_of(Page(report.html), "table_coverage")
    assert [line[0][0] for line in lines if line[10][0] == "pull_mean"] == ["1"]
    assert "variations" in report.html
    assert "pruned.map_mode_3.channels" in report.html


def test_the_detector_part_of_every_treatment_is_in_the_page(report):
    lines = rows_of(Page(report.html), "table_treatments")
    assert {tuple(line[column][1] for column in (5, 8, 11)) for line in lines} == {("0.05", "0.02", "0.03")}
    assert "smaller.all.inferred.detector_ratio" in report.html


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("results/closure.json", "closure.png"),
        ("results/fit.json", "pulls_nuisances.png"),
        ("results/impacts.json", "impacts_b.png"),
        ("results/scans.json", "scan_70.png"),
        ("results/two_jets.json", "two_jets.png"),
        ("results/identifiability.json", "identifiability.png"),
        ("results/support.json", "support.png"),
        ("results/generators.json", "generators.png"),
        ("results/high_pt.json", "high_pt.png"),
        ("results/coverage.json", "coverage.png"),
        ("results/detector_treatments.json", "treatments.png"),
        ("results/scale_factors_against_truth.json", "pulls_truth.png"),
        ("results/composition.json", "composition.png"),
        ("results/discriminants.safetensors", "discriminant_0_dijet.png"),
        ("results/roc_before_after.safetensors", "roc_before_after.png"),
        ("metrics.jsonl", "training.png"),
    ],
)
def test_missing_optional_file_is_named_and_its_figure_absent(all_missing, missing, gone):
    assert f"{missing}, which " in all_missing.html
    assert gone not in {path.name for path in all_missing.written}


@pytest.fixture(scope="session")
def all_missing(tmp_path_factory, write_run, report):
    """The report of a run that has nothing but its scale factors."""
    full = write_run(tmp_path_factory.mktemp("bare"), small=True)
    for path in full.rglob("*"):
        if path.is_file() and path.name != "scale_factors.json":
            path.unlink()
    written = build_report(full)
    return type(report)(full, written, (full / "report.html").read_text(encoding="utf-8"))


def test_bare_report_still_holds_the_scale_factors(all_missing):
    names = [path.name for path in all_missing.written if path.suffix != ".pdf"]
    assert names == [
        "scale_factors_b.png",
        "scale_factors_continuous_b.png",
        "breakdown.png",
        "correlation.png",
        "report.html",
    ]
    assert Page(all_missing.html).open == []
    assert len(rows_of(Page(all_missing.html), "table_working_point")) == 6


def test_damaged_optional_file_is_named_with_its_field(tmp_path, write_run):
    run = write_run(tmp_path / "run", small=True)
    for path in run.rglob("*"):
        if path.is_file() and path.name not in ("scale_factors.json", "closure.json"):
            path.unlink()
    closure = json.loads((run / "results/closure.json").read_text())
    closure["rows"][3]["held_out"] = "perhaps"
    (run / "results/closure.json").write_text(json.dumps(closure))
    build_report(run)
    assert "results/closure.json, field &#39;rows.3.held_out&#39;" in (run / "report.html").read_text()


def test_scale_factors_are_required(tmp_path: Path):
    with pytest.raises(DataError, match="no scale factors to report"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_measured_row_without_value_is_refused(tmp_path, write_run):
    run = write_run(tmp_path / "run", small=True)
    content = json.loads((run / "results/scale_factors.json").read_text())
    content["rows"][5]["value"] = None
    (run / "results/scale_factors.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="status 'measured' needs 'value'") as error:
        build_report(run)
    assert "rows.5" in str(error.value)
    assert not (run / "report.html").exists()


def test_the_table_of_maps_has_every_candidate_in_every_place(report):
    written = json.loads((report.path / "results" / "evaluation.json").read_text())["summary"]
    rows = rows_of(Page(report.html), "table_evaluation")
    assert len(rows) == sum(len(entry["places"]) for entry in written)
    found = [(row[0][0], row[1][0], row[3][0], row[5][1]) for row in rows]
    assert found == [
        (
            entry["name"],
            place["flavour"],
            "held out" if place["held_out"] else "control",
            str(place["shown"]["ratio"]),
        )
        for entry in written
        for place in entry["places"]
    ]
