"""Small wrong changes of the code (mutants), drawn at random: the operators are cosmic-ray's.

A *place* is a kind of change at one position: an arithmetic operator, a comparison, a number, True or
False, and/or, a condition, a minus sign, a decorator, a loop, an exception. A sample draws places, each
equally likely within its folder, and one of the changes that cosmic-ray knows for each. Left out are
changes that no test could see or that none could miss: inside of annotations, arithmetic turned into a
shift of bits (a TypeError for every float), and what does not compile without a warning (``x is 1``).
"""

from __future__ import annotations

import ast
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider

FOLDERS = ("transport", "penalty", "likelihood", "sbi")
LEFT_OUT = ("VariableReplacer", "VariableInserter")
"""They need to be told variables and effects."""
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
BITS = ("BitOr", "BitAnd", "BitXor")
BINARY = "ReplaceBinaryOperator_"
REPLACEMENTS = (BINARY, "ReplaceComparisonOperator_", "ReplaceUnaryOperator_")
BINARY_NODES = ("arith_expr", "term", "power", "expr", "and_expr", "xor_expr", "shift_expr")

Place = tuple[str, int, int, str]
"""Module, line, column, kind."""


@dataclass(frozen=True, order=True)
class Mutant:
    """One change: the ``occurrence``-th one that ``operator`` knows in ``module``."""

    module: str
    line: int
    column: int
    operator: str
    occurrence: int

    @property
    def key(self) -> str:
        """What distinguishes it from every other."""
        return f"{self.module}:{self.line}:{self.column}:{self.operator}:{self.occurrence}"

    @property
    def place(self) -> Place:
        """Where, and the operator without what it puts in place: all replacements of ``+`` are one kind."""
        kind = self.operator
        if kind.startswith(REPLACEMENTS):
            kind = "_".join(kind.split("_")[:2])
        return self.module, self.line, self.column, kind


@cache
def operators() -> dict[str, Operator]:
    """cosmic-ray's operators by name."""
    provider = OperatorProvider()
    return {name: provider[name]() for name in provider if name not in LEFT_OUT and _is_sensible(name)}


def _is_sensible(name: str) -> bool:
    if not name.startswith(BINARY):
        return True
    names = name.removeprefix(BINARY).split("_")
    return set(names) <= set(ARITHMETIC) or set(names) <= set(BITS)


def mutants_of(source: str, module: str) -> Iterator[Mutant]:
    """All mutants of one module that are worth a test."""
    annotations = list(_annotation_spans(ast.parse(source)))
    count: dict[str, int] = defaultdict(int)
    for node in ast_nodes(get_ast(source)):
        for name, operator in operators().items():
            for (line, column), _ in operator.mutation_positions(node):
                occurrence = count[name]
                count[name] += 1
                if name.startswith(BINARY) and node.parent.type not in BINARY_NODES:
                    continue
                if not any(first <= (line, column) < last for first, last in annotations):
                    yield Mutant(module, line, column, name, occurrence)


def _annotation_spans(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            found = getattr(node, name, None)
            if isinstance(found, ast.expr):
                yield (found.lineno, found.col_offset), (found.end_lineno or 0, found.end_col_offset or 0)


def mutated(source: str, mutant: Mutant) -> str | None:
    """``source`` with the change, or None if it does not compile without a warning or means the same."""
    text = mutate_code(source, operators()[mutant.operator], mutant.occurrence)
    if text is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)
            compile(text, mutant.module, "exec")
    except SyntaxError:
        return None
    return None if ast.dump(ast.parse(text)) == ast.dump(ast.parse(source)) else text


def draw_sample(root: Path, count: int, seed: int) -> list[Mutant]:
    """``count`` mutants over ``FOLDERS``, each folder in proportion to its places, no place twice."""
    random_numbers = random.Random(seed)
    sources = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in sorted((root / "selfcal" / folder).rglob("*.py"))
    }
    places: dict[str, dict[Place, list[Mutant]]] = {folder: defaultdict(list) for folder in FOLDERS}
    for module, source in sources.items():
        for mutant in mutants_of(source, module):
            places[module.split("/")[1]][mutant.place].append(mutant)
    total = sum(map(len, places.values()))
    sample: list[Mutant] = []
    for folder, choices in places.items():
        wanted = round(count * len(choices) / total)
        order = random_numbers.sample(sorted(choices), len(choices))
        found = []
        for place in order:
            mutant = random_numbers.choice(choices[place])
            if mutated(sources[mutant.module], mutant) is not None:
                found.append(mutant)
            if len(found) == wanted:
                break
        print(f"{folder}: {wanted} of {len(choices)} places")
        sample += found
    return sorted(sample)
