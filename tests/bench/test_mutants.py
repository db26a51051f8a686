"""Random wrong changes of the code: what is changed, and how a sample is drawn."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="needs the extra 'mutation'")

from bench.mutants import FOLDERS, draw_sample, mutants_of, mutated

SOURCE = '''
def mean(values: list[float] | None, *, weights: dict[str, int | str]) -> float | None:
    """1 + 1 in a docstring is no code."""
    if values is None:
        return -1.5
    return sum(values) / len(values)
'''


def test_each_change_is_one_change_outside_of_annotations():
    unchanged = [ast.dump(node) for node in ast.parse(SOURCE).body[0].args.args]
    seen = set()
    for mutant in mutants_of(SOURCE, "selfcal/penalty/a.py"):
        text = mutated(SOURCE, mutant)
        assert text is not None
        assert text not in seen
        seen.add(text)
        changed = [
            n
            for n, (a, b) in enumerate(zip(SOURCE.splitlines(), text.splitlines(), strict=True), 1)
            if a != b
        ]
        assert changed == [mutant.line]
        assert [ast.dump(node) for node in ast.parse(text).body[0].args.args] == unchanged
    assert {"return - 2.5", "return +1.5", "if values is not None:"} <= {
        " ".join(line.split()) for text in seen for line in text.splitlines()
    }


def test_what_warns_when_compiled_is_left_out():
    source = 'def found(kind):\n    return kind == "b"\n'
    texts = {m.operator: mutated(source, m) for m in mutants_of(source, "selfcal/penalty/a.py")}
    assert texts["ReplaceComparisonOperator_Eq_Is"] is None
    assert texts["ReplaceComparisonOperator_Eq_NotEq"] == source.replace("==", "!=")


def test_a_sample_is_a_matter_of_its_seed_and_of_the_size_of_folders(tmp_path: Path):
    for number, folder in enumerate(FOLDERS, 1):
        path = tmp_path / "selfcal" / folder / "a.py"
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"x{i} = {i} < {i + 2}\n" for i in range(10 * number)))
    sample = draw_sample(tmp_path, 20, seed=3)
    assert sample == draw_sample(tmp_path, 20, seed=3)
    assert sample != draw_sample(tmp_path, 20, seed=4)
    assert Counter(m.module.split("/")[1] for m in sample) == dict(zip(FOLDERS, (2, 4, 6, 8), strict=True))
    assert len({m.place for m in sample}) == 20
