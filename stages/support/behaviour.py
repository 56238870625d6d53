"""Write a source file's behaviour as text: its syntax tree without the parts that only people read.

Left out are docstrings and the texts of messages: in `raise` and `assert`, in calls of an error class, `print`, `track`
or `warning`. So rewording a message changes no digest of code. Texts that choose behaviour stay everywhere: keys,
subscripts, comparisons, and all that is nested in an argument of a call that is not itself a message.
"""

import ast

SPOKEN = {"print", "track", "warn", "warning"}  # functions whose texts are messages


def behaviour(source: str) -> str:
    """Return the text that stands for what a source file does."""
    return ast.unparse(_WithoutTexts().visit(ast.parse(source)))


class _WithoutTexts(ast.NodeTransformer):
    """Drops docstrings and messages."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if node.exc is not None:
            node.exc = _without_message(node.exc)
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if node.msg is not None:
            node.msg = _Message().visit(node.msg)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name.endswith("Error"):
            node.args = [_Message().visit(arg) for arg in node.args]
        elif name in SPOKEN:
            node.args = [_without_words(arg) for arg in node.args]
        return self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return super().generic_visit(node)


class _Message(ast.NodeTransformer):
    """Empties every text of an error but those that choose something."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("")

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        node.value = self.visit(node.value)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        node.values = [self.visit(value) for value in node.values]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        joined = isinstance(node.func, ast.Attribute) and node.func.attr == "join"
        return self.generic_visit(node) if joined else node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node


def _without_message(raised: ast.expr) -> ast.expr:
    """Return the raised expression with empty texts."""
    if isinstance(raised, ast.Call):
        raised.args = [_Message().visit(arg) for arg in raised.args]
    return raised


def _without_words(arg: ast.expr) -> ast.expr:
    """Return an argument of a message without its words; what an f-string computes stays."""
    if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
        return ast.Constant("")
    if isinstance(arg, ast.JoinedStr):
        return ast.JoinedStr([value for value in arg.values if isinstance(value, ast.FormattedValue)])
    return arg
