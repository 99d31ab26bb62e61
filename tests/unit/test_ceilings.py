"""The ceilings of the house style hold: function length, file length, package files for import-linter."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "infra",
    "streams",
    "store",
    "retrieval",
    "training",
    "monitoring",
    "serving",
    "dagster_project",
    "quillstream",
)
MAX_FUNCTION_LINES = 40
MAX_FILE_LINES = 400


def product_files() -> list[Path]:
    return [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def test_functions_and_files_stay_short():
    too_long: list[str] = []
    functions = 0
    for file in product_files():
        source = file.read_text()
        lines = source.count("\n")
        if lines > MAX_FILE_LINES:
            too_long.append(f"{file.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions += 1
                length = _body_lines(node)
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert functions > 300
    assert too_long == []


def test_every_folder_with_code_is_a_package_that_import_linter_sees():
    folders = {file.parent for file in product_files()}
    assert len(folders) >= len(ROOMS)
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_dagster_project_never_postpones_annotations():
    """Dagster reads the annotations of `context` and config at run time."""
    files = sorted((ROOT / "dagster_project").rglob("*.py"))
    assert len(files) >= 5
    assert [file.name for file in files if "from __future__ import annotations" in file.read_text()] == []


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code from `def` to the end, without the docstring."""
    last = node.end_lineno or node.lineno
    docstring = ast.get_docstring(node, clean=False)
    documented = docstring.count("\n") + 1 if docstring else 0
    return last - node.lineno + 1 - documented
