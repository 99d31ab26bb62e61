"""Program code as Markdown: what it says in words as prose, under the names it defines, and the code in fences."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

LANGUAGES = {
    ".py": "python", ".ipynb": "jupyter", ".js": "javascript", ".jsx": "javascript", ".ts": "typescript",
    ".tsx": "typescript", ".java": "java", ".kt": "kotlin", ".scala": "scala", ".go": "go", ".rs": "rust", ".c": "c",
    ".h": "c", ".cc": "cpp", ".cpp": "cpp", ".hpp": "cpp", ".cs": "csharp", ".rb": "ruby", ".php": "php",
    ".swift": "swift", ".sh": "bash", ".sql": "sql", ".lua": "lua", ".r": "r", ".jl": "julia",
}  # fmt: skip
LEADING_COMMENT = re.compile(r"\A(?:#!.*\n)?\s*(?:/\*(.*?)\*/|((?:[ \t]*(?://|#|--)[^\n]*\n)+))", re.DOTALL)
COMMENT_MARK = re.compile(r"^[ \t]*(?://+!?|#+|--|\*)[ \t]?", re.MULTILINE)


def code_to_markdown(source: str, name: str) -> tuple[str, str]:
    """(title, Markdown) of a source file: Python by its definitions, a notebook by its cells, others whole."""
    suffix = Path(name).suffix.lower()
    if suffix == ".ipynb":
        return name, _notebook(source)
    if suffix == ".py":
        try:
            return name, _python(source)
        except (SyntaxError, ValueError, RecursionError):
            pass  # another version of Python, or a template: shown whole
    words = LEADING_COMMENT.match(source)
    prose = COMMENT_MARK.sub("", words[1] or words[2]).strip() if words else ""
    return name, f"{prose}\n\n{fenced(source, LANGUAGES[suffix])}".strip()


def fenced(code: str, language: str = "") -> str:
    """A fenced code block; the fence is longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{code.strip(chr(10))}\n{fence}"


def _python(source: str) -> str:
    """The module's docstring and code, then each public class and function under a heading of its own."""
    lines = source.splitlines()
    tree = ast.parse(source)
    words = ast.get_docstring(tree)
    at = (tree.body[0].end_lineno or 0) if words else 0
    loose: list[str] = []
    parts: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            start = min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1
            loose += lines[at:start]
            at = node.end_lineno or node.lineno
            body = fenced("\n".join(lines[start:at]), "python")
            parts += [f"## {node.name}", ast.get_docstring(node) or "", *_methods(node), body]
    loose += lines[at:]
    rest = re.sub(r"\n{3,}", "\n\n", "\n".join(loose)).strip("\n")
    return "\n\n".join(part for part in (words, fenced(rest, "python") if rest else "", *parts) if part)


def _methods(node: ast.stmt) -> list[str]:
    """What the public methods of a class say, one paragraph each."""
    found: list[str] = []
    if not isinstance(node, ast.ClassDef):
        return found
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            words = ast.get_docstring(child)
            if words:
                found.append(f"`{node.name}.{child.name}`: {words}")
    return found


def _notebook(source: str) -> str:
    """Text cells as they are, code cells in fences; outputs are left out."""
    try:
        cells = json.loads(source)["cells"]
        kinds = [(str(cell.get("cell_type")), "".join(cell.get("source") or [])) for cell in cells]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    shown = [text if kind == "markdown" else fenced(text, "python") for kind, text in kinds if text.strip()]
    return "\n\n".join(shown)
