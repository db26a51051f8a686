"""YAML reading: what is refused, and on which line."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selfcal.config.document import dotted, dump_yaml, merge_documents, parse_document, parse_value, set_value
from selfcal.errors import ConfigError

REFUSED = {
    "duplicate key": ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5, key 'b.c'", "duplicate key 'c'"),
    "python tag": ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "line 2, key 'b'", "unknown tag"),
    "own tag": ("a: [1, !secret x]\n", "line 1, key 'a[1]'", "unknown tag '!secret'"),
    "merge key": ("a: &x {b: 1}\nc:\n  <<: *x\n", "line 3, key 'c'", "cannot be a key"),
    "self alias": ("a: &x\n  b: *x\n", "line 1, key 'a.b'", "contains itself"),
    "list as key": ("? [1, 2]\n: 3\n", "line 1", "cannot be a key"),
    "unclosed list": ("a: 1\nb: [1, 2\nc: 3\n", "line 3", "not valid YAML"),
    "tab": ("a:\n\tb: 1\n", "line 2", "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "line 2", "not valid YAML"),
    "unknown alias": ("a: 1\nb: *nothing\n", "line 2", "not valid YAML"),
    "control character": ("a: 1\nb: \x07\n", "line 2", "character that YAML does not allow"),
    "list at the root": ("- 1\n- 2\n", "line 1", "a list at the root"),
    "text at the root": ("hello\n", "line 1", "the value 'hello' at the root"),
}


@pytest.mark.fault(13, "YAML that is refused, with its line")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_line(name):
    text, where, problem = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "run.yaml")
    assert problem in caught.value.problem
    assert caught.value.where.startswith("run.yaml, line")
    assert where in caught.value.where


def test_an_empty_file_is_refused():
    for text in ("", "# only a comment\n"):
        with pytest.raises(ConfigError, match="empty"):
            parse_document(text, "run.yaml")


def test_aliases_cannot_blow_up_memory():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than"):
        parse_document("\n".join(lines), "run.yaml")


def test_deep_nesting_is_an_error_not_a_crash():
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_document("a: " + "[" * 5000 + "]" * 5000, "run.yaml")


def test_numbers_dates_and_text():
    values = parse_document("a: 1e-3\nb: 2E4\nc: 2024-01-02\nd: .5\ne: 0x10\nf: 'x'\ng:\n", "x").values
    assert values == {"a": 1e-3, "b": 2e4, "c": "2024-01-02", "d": 0.5, "e": 16, "f": "x", "g": None}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="ascii", categories=["L", "N"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", min_size=1), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text("abcdef", min_size=1), plain))
def test_reads_back_what_it_writes_and_as_safe_load_does(values):
    text = dump_yaml(values)
    assert parse_document(text, "x").values == values
    assert yaml.safe_load(text) == values


@pytest.mark.parametrize("text", ["1e5", "2024-01-01", "yes", "null", "0x1F", "<<", "a: b", "", "é", "1_0"])
def test_text_that_looks_like_something_else_stays_text(text):
    assert parse_document(dump_yaml({"a": text}), "x").values == {"a": text}


def test_positions_are_those_of_the_keys():
    document = parse_document("a:\n  b: 1\n  c:\n    - 2\n    - {d: 3}\n", "f")
    lines = {dotted(path): position.line for path, position in document.positions.items()}
    assert lines == {"": 1, "a": 1, "a.b": 2, "a.c": 3, "a.c[0]": 4, "a.c[1]": 5, "a.c[1].d": 5}


def test_merging_is_deep_for_mappings_and_replaces_lists():
    first = parse_document("a: {b: 1, c: [1, 2, 3]}\nd: {e: 5}\n", "first")
    second = parse_document("\n\na:\n  c: [9]\n  x: 2\nd: 7\n", "second")
    merged = merge_documents(first, second)
    assert merged.values == {"a": {"b": 1, "c": [9], "x": 2}, "d": 7}
    assert str(merged.position(("a", "b"))) == "first, line 1"
    assert str(merged.position(("a", "c", 0))) == "second, line 4"
    assert str(merged.position(("d",))) == "second, line 6"
    assert ("a", "c", 2) not in merged.positions
    assert ("d", "e") not in merged.positions
    assert first.values == {"a": {"b": 1, "c": [1, 2, 3]}, "d": {"e": 5}}


def test_merging_is_associative():
    texts = ["a: {b: 1}\nc: 2", "a: {b: {d: 1}}\ne: [1]", "a: {b: {f: 2}}\ne: {g: 1}"]
    a, b, c = (parse_document(text, str(i)) for i, text in enumerate(texts))
    left = merge_documents(merge_documents(a, b), c)
    right = merge_documents(a, merge_documents(b, c))
    assert left.values == right.values
    assert left.positions == right.positions


def test_set_changes_one_value_and_leaves_the_original():
    document = parse_document("a: {b: 1, c: [1, 2]}\n", "f")
    assert set_value(document, "a.b=[3, x]").values == {"a": {"b": [3, "x"], "c": [1, 2]}}
    assert set_value(document, "a.c.1=5e-3").values == {"a": {"b": 1, "c": [1, 0.005]}}
    assert set_value(document, "new.key=true").values == {"a": {"b": 1, "c": [1, 2]}, "new": {"key": True}}
    assert set_value(document, "a.b=").values["a"]["b"] is None
    assert document.values == {"a": {"b": 1, "c": [1, 2]}}
    assert str(set_value(document, "new.key=true").position(("new",))) == "--set new.key=true"


@pytest.mark.parametrize("assignment", ["a", "=1", "a..b=1", ".a=1", "a.c.2=1", "a.c.x=1", "a=[1", "a=!x 1"])
def test_bad_assignments_are_refused(assignment):
    document = parse_document("a: {b: 1, c: [1, 2]}\n", "f")
    with pytest.raises(ConfigError) as caught:
        set_value(document, assignment)
    assert caught.value.where.startswith(f"--set {assignment}")


def test_a_value_may_contain_an_equals_sign():
    document = parse_document("a: 1\n", "f")
    assert set_value(document, "a='StringZ:rFactB = 1.05'").values == {"a": "StringZ:rFactB = 1.05"}
    assert parse_value("{x: 1}", "f") == {"x": 1}
