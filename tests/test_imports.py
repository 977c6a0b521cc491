"""What holds between modules beyond the contracts of import-linter, which are in pyproject.toml."""

import ast
from pathlib import Path

import grimp

import halludecode

PACKAGE = Path(halludecode.__file__).parent


def circles(imported):
    """Groups of modules that reach one another, by Tarjan's algorithm."""
    number, low, stack, found = {}, {}, [], []

    def visit(module):
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in imported[module]:
            if other not in number:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in imported:
        if module not in number:
            visit(module)
    return found


def test_circles_are_found():
    assert circles({"a": "b", "b": "c", "c": "bd", "d": ""}) == [["b", "c"]]
    assert circles({"a": "bc", "b": "c", "c": ""}) == []


def test_no_module_reaches_itself():
    """Imports inside functions count too; only a type checker's do not."""
    graph = grimp.build_graph("halludecode", exclude_type_checking_imports=True, cache_dir=None)
    imported = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert circles(imported) == []


def private_parts(tree):
    """``engine._x``, ``self._engine._x`` and ``getattr(engine, "_x")``, with their lines."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name):
                pass
            case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[owner, name, *_]):
                name = name.value if isinstance(name, ast.Constant) else ""
            case _:
                continue
        whose = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
        if whose.lower().endswith("engine") and name.startswith("_") and name[:2] != "__":
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_private_parts_are_found():
    code = "engine._a\nself._engine._b.c\ngetattr(engine, '_d', 0)\nengine.e\nself._f\nengine.__g__"
    assert sorted(private_parts(ast.parse(code))) == [
        "1: engine._a",
        "2: self._engine._b",
        "3: getattr(engine, '_d', 0)",
    ]


def test_only_engines_touch_what_an_engine_hides():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "engines" not in path.relative_to(PACKAGE).parts
        for line in private_parts(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []
