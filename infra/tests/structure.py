"""Which file of a crate uses what of which other file, read from its paths (`use crate::…`, `super::…`, `crate::a::B`).

Text only, no compiler: what it misses is an import that a macro makes. Code below `#[cfg(test)]` does not count, and
neither does an arrow from a file to its parents (`a/b.rs` to `a.rs`): a module is at home in its parent. What `lib.rs`
re-exports belongs to the file that declares it.
"""

import pathlib
import re

USE = re.compile(r"\buse\s+([^;]+);")
PATH = re.compile(r"(?<![\w:$])((?:[A-Za-z_]\w*)(?:::[A-Za-z_]\w*)+)")
TEST_ITEM = re.compile(r"#\[cfg\(test\)\][^{;]*")
# Comments, strings and characters: an opening brace in one of them is none.
OPAQUE = re.compile(
    r"//[^\n]*|/\*.*?\*/|b?r(#*)\".*?\"\1|b?\"(?:\\.|[^\"\\])*\"|b?'(?:\\[^\n]|[^'\\\n])'", re.S)


def blank(match):
    return re.sub(r"[^\n]", " ", match.group(0))


def block_end(text, opening):
    """Where the block ends that this brace opens."""
    depth = 0
    for at in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return len(text) - 1


def code_of(path):
    text = OPAQUE.sub(blank, path.read_text())
    while found := TEST_ITEM.search(text):
        end = block_end(text, found.end()) if text[found.end():found.end() + 1] == "{" else found.end()
        text = text[:found.start()] + text[end + 1:]
    return text


def leaves(tree):
    """The paths that a `use` names, as tuples of segments, with the name that each has here."""
    tokens = re.findall(r"::|[{},*]|\w+", tree)
    at = 0

    def branch(prefix):
        nonlocal at
        segments, found = [], []
        while at < len(tokens) and tokens[at] not in ",}":
            token = tokens[at]
            at += 1
            if token == "{":
                while tokens[at] != "}":
                    if tokens[at] == ",":
                        at += 1
                    else:
                        found += branch(prefix + tuple(segments))
                at += 1
                return found
            if token == "as":
                alias = tokens[at]
                at += 1
                return [(prefix + tuple(segments), alias)]
            if token != "::":
                segments.append(token)
        whole = prefix + tuple(segments)
        whole = whole[:-1] if whole[-1] == "self" else whole
        return [(whole, whole[-1])]

    return branch(())


class Crate:
    """The files of one crate's `src`, and the arrows between them."""

    def __init__(self, root, source):
        self.root, self.source = root, source
        self.files = {self.module(path): path for path in sorted(source.rglob("*.rs"))}
        self.code = {module: code_of(path) for module, path in self.files.items() if "tests" not in module}
        self.reexports = self.read_reexports()

    def module(self, path):
        parts = path.relative_to(self.source).with_suffix("").parts
        return () if parts in {("lib",), ("main",)} else parts

    def read_reexports(self):
        """What the root hands out under its own name: name → path."""
        root = self.code.get((), "")
        found = re.findall(r"\bpub(?:\([^)]*\))?\s+use\s+([^;]+);", root)
        paths = [leaf for tree in found for leaf in leaves(tree)]
        return {name: self.absolute((), path, {}) or path for path, name in paths if path[-1] != "*"}

    def absolute(self, module, path, imports):
        """The path from the crate's root, if it leads to a file of this crate."""
        first, rest = path[0], path[1:]
        if first == "crate":
            found = rest
        elif first == "self":
            found = module + rest
        elif first == "super":
            while path and path[0] == "super":
                module, path = module[:-1], path[1:]
            found = module + path
        elif first in imports:
            found = imports[first] + rest
        elif module + (first,) in self.files:
            found = module + path
        else:
            return None
        if found and found[0] in getattr(self, "reexports", {}):
            found = self.reexports[found[0]] + found[1:]
        return found

    def arrows(self):
        """File → {file that it uses: names}."""
        result = {}
        for module, code in self.code.items():
            imports, used = {}, []
            for tree in USE.findall(code):
                for path, name in leaves(tree):
                    if found := self.absolute(module, path, imports):
                        imports.setdefault(name, found)
                        used.append(found)
            for path in PATH.findall(USE.sub(blank, code)):
                if found := self.absolute(module, tuple(path.split("::")), imports):
                    used.append(found)
            arrows = {}
            for path in used:
                target = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in self.files), None)
                # A module by itself is a way to its names; they are seen where they are used.
                is_parent = target is not None and module[:len(target)] == target
                if target is None or is_parent or path == target or target not in self.code:
                    continue
                arrows.setdefault(target, set()).add(path[len(target)])
            result[module] = arrows
        return result

    def circles(self):
        """Sets of files that use each other, each with its arrows as lines of text."""
        arrows = self.arrows()
        found = [circle for circle in components(arrows) if len(circle) > 1]
        name = lambda module: str(self.files[module].relative_to(self.root))
        return {
            frozenset(map(name, circle)): [
                f"{name(one)} → {name(other)}: {', '.join(sorted(names))}"
                for one in sorted(circle) for other, names in sorted(arrows[one].items()) if other in circle]
            for circle in found}


def components(graph):
    """Strongly connected components (Tarjan 1972)."""
    order, low, stack, found = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in graph[node]:
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            at = stack.index(node)
            found.append(stack[at:])
            del stack[at:]

    for node in graph:
        if node not in order:
            visit(node)
    return found


def crates(root):
    return [Crate(root, path) for path in sorted(pathlib.Path(root).glob("*/src"))]
