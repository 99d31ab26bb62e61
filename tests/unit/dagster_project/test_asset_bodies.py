"""Asset bodies stay thin: one room function, at most 25 lines, no SQL, no loops, no try."""

import ast
from pathlib import Path

DEFS = Path(__file__).resolve().parents[3] / "dagster_project" / "defs"
ASSETS = {"documents", "features", "instruct_dataset", "adapter", "evaluation_report", "release"}


def asset_functions() -> list[ast.FunctionDef]:
    tree = ast.parse((DEFS / "assets.py").read_text())
    return [node for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_every_asset_is_there_and_short():
    functions = asset_functions()
    assert {function.name for function in functions} == ASSETS
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 25] == []


def test_asset_bodies_hold_no_logic_of_their_own():
    forbidden = (ast.For, ast.While, ast.Try, ast.With, ast.comprehension)
    looked_at = 0
    for function in asset_functions():
        for node in ast.walk(function):
            looked_at += 1
            assert not isinstance(node, forbidden), f"{function.name} holds {type(node).__name__}"
    assert looked_at > 100


def test_each_asset_calls_the_wiring_once():
    for function in asset_functions():
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Attribute) and _is_wiring_call(node.value)]
        assert len(calls) == 1, function.name


def _is_wiring_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "wiring"
