"""Programs in files, read before they are loaded: is there anything in them but arithmetic on tensors?

Both functions return a fresh archive of the members they read, so that what was vetted is what is loaded.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import warnings
import zipfile
from typing import Any

import torch

from ..errors import UnsafeFileError
from .sniff import Container

#: functions of TorchScript that reach outside the process
_REACHING = {"save", "load", "from_file", "load_tensor", "open", "fork", "manual_seed", "seed"}
_NAMESPACES = {"prim", "aten", "quantized"}
#: what all that TorchScript calls by a path starts from
_ROOTS = {"torch", "ops", "__torch__"}
_SCRIPT_BUILTINS = {
    "annotate", "uninitialized", "unchecked_cast", "getattr", "isinstance", "int", "float", "bool", "str", "len",
    "range", "min", "max", "abs", "round", "sum", "sorted", "zip", "enumerate", "list", "tuple", "dict", "divmod",
    "ord", "chr", "hasattr", "complex", "AssertionError", "Exception", "ValueError", "RuntimeError", "TypeError",
    "IndexError", "KeyError", "NotImplementedError",
}  # fmt: skip
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!save\b|load\b|from_file\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|scan|map_impl)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|abs)"
    r"|torch\.sym_\w+|torch\.\_sym_sqrt|math\.(ceil|floor|trunc|sqrt|prod)"
)
_SYMBOL_CALLS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "Max",
    "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Abs", "CeilToInt", "FloorToInt", "TruncToInt",
    "ModularIndexing", "Where", "IntTrueDiv", "FloatTrueDiv", "PowByNatural", "FloatPow", "ToFloat", "Identity",
}  # fmt: skip
_SYMBOL_NODES = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
#: fields of a graph that are copied into code or evaluated, and not needed
_COMMENTS = ("metadata", "guards_code")
#: fields that say how arguments and results are nested, as JSON
_SPECS = ("in_spec", "out_spec")
#: without parentheses, quotes of one kind, equals signs and line breaks a string calls and assigns nothing
_HARMLESS = re.compile(r"""[\w .\-\[\]{}":,+/#<>*]*""")


def torchscript(container: Container) -> io.BytesIO:
    """The archive of a TorchScript module, once its code has been read.

    Raises:
        UnsafeFileError: the code calls something that is no arithmetic on tensors.
    """
    members = _members(container)
    for name, data in members.items():
        if name.endswith(".py"):
            reason = _script_reason(data)
            if reason:
                raise _unsafe(container, reason)
        elif name.endswith(".pkl") and (b"torch.classes" in data or b"__setstate__" in data):
            raise _unsafe(container, "it holds objects of compiled classes")
    return _archive(members)


def _script_reason(source: bytes) -> str:
    try:
        tree = ast.parse(source.decode("utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return "its code cannot be read"
    scopes = _scopes(tree)
    if any(name in _ROOTS for bound in scopes.values() for name in bound):
        return "it gives torch's own names another meaning"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("__setstate__", "__getstate__"):
            return f"its code runs on loading ({node.name})"
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Lambda, ast.Global, ast.AsyncFunctionDef)):
            return "its code imports or defines what no TorchScript does"
        if isinstance(node, ast.Attribute) and node.attr == "classes":
            return "it uses compiled classes (torch.classes)"
        if isinstance(node, ast.Call):
            reason = _call_reason(node.func, scopes.get(id(node), {}))
            if reason:
                return reason
    # a function of torch's under another name would be called past the checks above
    called = {id(_parts(node.func)[0]) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("torch", "ops") and id(node) not in called:
            return f"its code hands on {node.id} or a part of it without calling it"
    return ""


def _scopes(tree: ast.Module) -> dict[int, dict[str, list[str]]]:
    """By the id of each node inside a function, what the function binds: see :func:`_bound`."""
    scopes: dict[int, dict[str, list[str]]] = {}
    for node in ast.walk(tree):
        # a function in a function is walked after the outer one, whose names it sees
        if isinstance(node, ast.FunctionDef) and id(node) not in scopes:
            bound = _bound(node)
            scopes |= {id(inner): bound for inner in ast.walk(node)}
    return scopes


def _bound(function: ast.FunctionDef) -> dict[str, list[str]]:
    """Every name that a function binds, with the path that it is an alias of: empty unless it is surely one.

    TorchScript writes ``_0 = __torch__.torch.nn.functional.batch_norm`` and calls ``_0``. Such a path leads to code
    in the same archive, which is read too; a name bound twice, or to anything else, may be anything.
    """
    aliases: dict[int, list[str]] = {}
    bound: dict[str, list[str]] = {}
    for node in ast.walk(function):
        names: list[tuple[str, list[str]]] = []
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            root, path = _parts(node.value)
            if isinstance(root, ast.Name) and root.id == "__torch__":
                aliases[id(node.targets[0])] = path
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names = [(node.id, aliases.get(id(node), []))]
        elif isinstance(node, ast.arg):
            names = [(node.arg, [])]
        elif node is not function:
            # whatever else binds a name keeps it in one of these fields
            kept = [getattr(node, field, None) for field in ("name", "rest")]
            names = [(name, []) for name in (*kept, *getattr(node, "names", ())) if isinstance(name, str)]
        for name, path in names:
            bound[name] = [] if name in bound else path
    return bound


def _parts(expression: ast.expr) -> tuple[ast.expr, list[str]]:
    """What a chain of attributes starts from, and the names along it, the start's own among them if it has one."""
    names: list[str] = []
    while isinstance(expression, ast.Attribute):
        names.insert(0, expression.attr)
        expression = expression.value
    if isinstance(expression, ast.Name):
        names.insert(0, expression.id)
    return expression, names


def _call_reason(function: ast.expr, bound: dict[str, list[str]]) -> str:
    _, names = _parts(function)
    if isinstance(function, ast.Name):
        if function.id not in bound:
            return "" if function.id in _SCRIPT_BUILTINS else f"its code calls {function.id}"
        names = bound[function.id]
        if not names:
            return f"its code calls {function.id}, which may be anything"
    elif not isinstance(function, ast.Attribute):
        return "its code calls what has no name"
    if names[-1] in _REACHING:
        return f"its code calls {'.'.join(names)}, which reaches outside the model"
    if names[0] == "ops" and (len(names) != 3 or names[1] not in _NAMESPACES):
        return f"its code calls {'.'.join(names)}, an operator that torch does not bring"
    return ""


def exported(container: Container) -> io.BytesIO:
    """The archive of an exported program, once its graph and its payloads have been read.

    Raises:
        UnsafeFileError: a payload is a pickle of more than tensors, or the graph holds a string that could run.
    """
    members = _members(container)
    for name, data in members.items():
        if name.endswith(".json") and ("models/" in name or "exported_program" in name):
            members[name] = _vetted_graph(container, data)
        elif "/custom_obj" in name or "/opaque_obj" in name or name.endswith((".so", ".cpp", ".cubin", ".o")):
            raise _unsafe(container, f"its member {name} is a compiled or pickled object")
        elif data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and not _only_tensors(data):
            raise _unsafe(container, f"its member {name} is a pickle of more than tensors")
    return _archive(members)


def _only_tensors(data: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        return False
    return True


def _vetted_graph(container: Container, data: bytes) -> bytes:
    try:
        graph = json.loads(data)
        reason = next(_graph_reasons(graph, ""), None)
        vetted = json.dumps(_without_comments(graph)).encode()
    except (ValueError, RecursionError) as error:
        raise container.damaged(error) from None
    if reason is not None:
        raise _unsafe(container, reason)
    return vetted


def _without_comments(node: Any) -> Any:
    """The graph without stack traces and guards, which are emptied and so never vetted."""
    if isinstance(node, dict):
        return {key: type(value)() if key in _COMMENTS else _without_comments(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_comments(value) for value in node]
    return node


def _graph_reasons(node: Any, field: str) -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _COMMENTS:
                continue
            if not _HARMLESS.fullmatch(key):
                yield f"its graph has the name {key!r:.60}"
            yield from _graph_reasons(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from _graph_reasons(value, field)
    elif isinstance(node, str):
        if field == "target" and not _TARGET.fullmatch(node):
            yield f"its graph calls {node!r:.80}, which is no tensor operator of torch"
        elif field == "expr_str" and not _is_symbolic(node):
            yield f"its graph evaluates {node!r:.80}"
        elif field != "expr_str" and not (_HARMLESS.fullmatch(node) or (field in _SPECS and _is_structure(node))):
            yield f"its graph holds the string {node!r:.80}"


def _is_structure(text: str) -> bool:
    """JSON that says how arguments and results are nested; the keys of a dictionary are JSON in a string of it."""
    try:
        nodes = [json.loads(text)]
    except (ValueError, RecursionError):
        return False
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            # an enumeration is imported from where its name says
            if "__enum__" in node or not all(_HARMLESS.fullmatch(key) for key in node):
                return False
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
        elif isinstance(node, str):
            try:
                nodes.append(json.loads(node))  # whoever rebuilds it may read strings once more
            except (ValueError, RecursionError):
                if not _HARMLESS.fullmatch(node):
                    return False
    return True


def _is_symbolic(text: str) -> bool:
    """An expression in sizes: names, numbers, arithmetic and sympy's own functions of them."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _SYMBOL_NODES):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _SYMBOL_CALLS):
            return False
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not re.fullmatch(r"\w+", node.value):
            return False
    return True


def _members(container: Container) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(container.path) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    except Exception as error:  # zipfile and its decompressors report damage in many ways
        raise container.damaged(error) from None


def _archive(members: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    buffer.seek(0)
    return buffer


def _unsafe(container: Container, reason: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"{container.path} looks like {container.looks_like}, and loading it would run code in the file: {reason}. "
        "Pass trust=True if you trust where it comes from, or save the state dict and pass factory=."
    )
