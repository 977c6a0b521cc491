"""What a package's files define, without importing it: sooner, and of a wheel that cannot run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Found = tuple[str, Definition | None]  # module, and its class or function; None for other values


class Sources:
    """Some packages' files.

    Args:
        folder: Holds the packages' folders.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._module = cache(self._read)
        self._found = cache(self._find)

    def has(self, module: str, name: str) -> bool:
        """Whether a module has a name, or is a package with a module of that name."""
        return self._found(module, name) is not None

    def has_member(self, module: str, name: str, member: str) -> bool:
        """Whether a class has a method, field or attribute of its own or inherited."""
        return any(member in _members(cls) for _, cls in self._classes(module, name))

    def parameters(self, module: str, name: str, method: str) -> list[str] | None:
        """Names of a method's parameters; None where there is no such method."""
        for _, cls in self._classes(module, name):
            found = _members(cls).get(method)
            if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = found.args
                return [arg.arg for arg in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
        return None

    def abstract(self, module: str, name: str) -> list[str]:
        """Methods of a class, inherited ones too, that nothing implements."""
        found: dict[str, bool] = {}
        for _, cls in self._classes(module, name):
            for member, node in _members(cls).items():
                decorators = getattr(node, "decorator_list", ())
                is_abstract = any("abstract" in ast.unparse(each) for each in decorators)
                found.setdefault(member, is_abstract)
        return sorted(member for member, is_abstract in found.items() if is_abstract)

    def _classes(self, module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
        """A class and its bases, nearest first, as far as they are in these packages."""
        found = self._found(module, name)
        if found is None or not isinstance(found[1], ast.ClassDef):
            return
        place, cls = found
        yield place, cls
        for base in cls.bases:
            target = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(target, ast.Name):
                yield from self._classes(place, target.id)

    def _path(self, module: str) -> Path | None:
        for folder in self._folders:
            path = folder.joinpath(*module.split("."))
            for file in (path / "__init__.py", path.with_name(path.name + ".py")):
                if file.is_file():
                    return file
        return None

    def _read(self, module: str) -> tuple[dict[str, ast.AST], list[ast.ImportFrom]]:
        """Names at a module's top, in its conditions too, and what binds them; starred imports."""
        path = self._path(module)
        names: dict[str, ast.AST] = {}
        starred: list[ast.ImportFrom] = []
        for node in _statements(ast.parse(path.read_text(encoding="utf-8")).body) if path else ():
            for name in _bound(node):
                names.setdefault(name, node)
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                starred.append(node)
        return names, starred

    def _find(self, module: str, name: str) -> Found | None:
        names, starred = self._module(module)
        node = names.get(name)
        if isinstance(node, Definition):
            return module, node
        if isinstance(node, ast.ImportFrom):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            source = self._source(module, node)
            if self._path(source) is None:  # not of these packages: taken to be there
                return module, None
            if (source, original) != (module, name):
                return self._found(source, original)
            node = None  # `from . import name`: a module of the package
        if node is not None or self._path(f"{module}.{name}") is not None:
            return module, None
        found = (self._found(self._source(module, each), name) for each in starred)
        return next((each for each in found if each is not None), None)

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        """The module that a statement of another imports from."""
        path = self._path(module)
        if not node.level or path is None:
            return node.module or ""
        up = module.split(".")
        up = up[: len(up) - node.level + (path.name == "__init__.py")]
        return ".".join([*up, *([node.module] if node.module else [])])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, and those inside of conditions and attempts."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            inner = [node.body, getattr(node, "orelse", []), getattr(node, "finalbody", [])]
            inner += [handler.body for handler in getattr(node, "handlers", ())]
            for part in inner:
                yield from _statements(part)


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds."""
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def _members(cls: ast.ClassDef) -> dict[str, ast.AST]:
    """A class's own methods and fields, and the attributes that its `__init__` sets."""
    members = {name: node for node in _statements(cls.body) for name in _bound(node)}
    start = members.get("__init__")
    for node in ast.walk(start) if start is not None else ():
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            members.setdefault(node.attr, node)
    return members
