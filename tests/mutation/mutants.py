"""Mutants of a Python module: the module with one small thing changed."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


class Mutant(NamedTuple):
    line: int
    change: str
    """What was changed, as ``before -> after``."""
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its syntax tree.

    Comparisons, arithmetic, ``and``/``or``/``not``, numbers and truth values are changed, results of functions become
    None, statements of functions go. Annotations, strings and the texts of errors are left alone.
    """
    tree = ast.parse(source)
    places = list(_places(tree))
    for index, place in enumerate(places):
        for number in range(len(list(_changes(place)))):
            changed = copy.deepcopy(tree)
            target = list(_places(changed))[index]
            before = ast.unparse(target.node)
            after = list(_changes(target))[number]
            target.put(after)
            yield Mutant(
                place.node.lineno, f"{before} -> {ast.unparse(after)}", ast.unparse(ast.fix_missing_locations(changed))
            )


class _Place(NamedTuple):
    """A node that could be changed, and where it hangs."""

    node: ast.expr | ast.stmt
    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def _places(node: ast.AST, in_function: bool = False) -> Iterator[_Place]:
    inside = in_function or isinstance(node, ast.FunctionDef)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.JoinedStr) or _is_slots(child):
                continue
            if isinstance(child, ast.expr) or (isinstance(child, ast.stmt) and inside):
                yield _Place(child, node, field, index)
            if isinstance(child, ast.AST) and not (isinstance(child, ast.Assign) and _is_alias(child)):
                yield from _places(child, inside)


def _is_slots(node: object) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__"


def _is_alias(node: ast.Assign) -> bool:
    """Whether an assignment names a type: there, ``|`` is no arithmetic."""
    return isinstance(node.value, ast.Subscript) and ast.unparse(node.value.value) in ("tuple", "dict", "list")


def _changes(place: _Place) -> Iterator[ast.AST]:
    """What a node could become."""
    node = copy.deepcopy(place.node)
    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                changed = copy.deepcopy(node)
                changed.ops[index] = COMPARE[type(operator)]()
                yield changed
        case ast.BinOp() if type(node.op) in ARITHMETIC:
            yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield ast.Constant(node.value + 1)
        case ast.Return(value=ast.expr()) if ast.unparse(node.value) != "None":
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Constant()):
            return  # a docstring
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.Expr() | ast.Raise() | ast.Break() | ast.Continue():
            if not (isinstance(node, ast.AnnAssign) and node.value is None):
                yield ast.Pass()
