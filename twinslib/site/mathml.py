"""Formulas of the notebooks as MathML, which browsers and screen readers know without a script."""

import re
from html import escape

SYMBOLS = {  # command -> (element, text)
    "alpha": ("mi", "α"), "beta": ("mi", "β"), "delta": ("mi", "δ"), "eta": ("mi", "η"), "lambda": ("mi", "λ"), "mu": ("mi", "μ"),
    "sigma": ("mi", "σ"), "theta": ("mi", "θ"), "varepsilon": ("mi", "ε"), "epsilon": ("mi", "ε"), "Phi": ("mi", "Φ"),
    "ell": ("mi", "ℓ"), "infty": ("mi", "∞"), "lVert": ("mo", "‖"), "rVert": ("mo", "‖"), "langle": ("mo", "⟨"),
    "rangle": ("mo", "⟩"), "cdot": ("mo", "·"), "times": ("mo", "×"), "le": ("mo", "≤"), "leq": ("mo", "≤"), "ge": ("mo", "≥"),
    "geq": ("mo", "≥"), "in": ("mo", "∈"), "sum": ("mo", "∑"), "max": ("mo", "max"), "min": ("mo", "min"), "to": ("mo", "→"),
    "nabla": ("mo", "∇"), "partial": ("mo", "∂"), "pm": ("mo", "±"),
}
SPACES = {",": "0.17em", ";": "0.28em", " ": "0.33em", "quad": "1em", "qquad": "2em"}
TOKEN = re.compile(r"\\text\{(?P<text>[^}]*)\}|\\(?P<command>[A-Za-z]+|.)|(?P<number>\d+(?:\.\d+)?)|(?P<other>\S)")


def to_mathml(source: str, *, block: bool = False) -> str:
    r"""A formula in the part of LaTeX that the notebooks use, as MathML; the source is kept as its annotation.

    Raises:
        ValueError: a command that is not known, or braces that do not match.

    >>> to_mathml(r"\eta^2").split("<annotation")[0]
    '<math><semantics><mrow><msup><mi>η</mi><mn>2</mn></msup></mrow>'
    """
    tokens = list(TOKEN.finditer(source))[::-1]
    try:
        body = _row(tokens, "")
    except IndexError:
        raise ValueError(f"expected a whole formula, got {source!r}, which ends too early") from None
    if tokens:
        raise ValueError(f"expected braces in pairs, got {source!r}")
    note = f'<annotation encoding="application/x-tex">{escape(source.strip())}</annotation>'
    return f'<math{" display=" + chr(34) + "block" + chr(34) if block else ""}><semantics>{body}{note}</semantics></math>'


def _row(tokens: list[re.Match], end: str) -> str:
    """All up to the closing token, which is taken too."""
    parts: list[str] = []
    while tokens or end:
        token = tokens.pop()
        if token["other"] == end:
            return _in_row(parts)
        if token["other"] == "}":
            tokens.append(token)
            break
        if token["other"] in ("^", "_"):
            base, script = parts.pop() if parts else "<mrow></mrow>", _atom(tokens.pop(), tokens)
            parts.append(f"<msup>{base}{script}</msup>" if token["other"] == "^" else f"<msub>{base}{script}</msub>")
        else:
            parts.append(_atom(token, tokens))
    return _in_row(parts)


def _in_row(parts: list[str]) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def _atom(token: re.Match, tokens: list[re.Match]) -> str:
    """One token, or what belongs to it: a group in braces, a root."""
    if token["text"] is not None:
        return f"<mtext>{escape(token['text']).replace(' ', chr(160))}</mtext>"
    if token["number"]:
        return f"<mn>{token['number']}</mn>"
    if command := token["command"]:
        if command == "sqrt":
            return f"<msqrt>{_atom(tokens.pop(), tokens)}</msqrt>"
        if command == "frac":
            return f"<mfrac>{_atom(tokens.pop(), tokens)}{_atom(tokens.pop(), tokens)}</mfrac>"
        if command in SPACES:
            return f'<mspace width="{SPACES[command]}"></mspace>'
        if command not in SYMBOLS:
            raise ValueError(f"expected a command out of {', '.join(sorted(SYMBOLS))}, sqrt, frac or text, got \\{command}")
        element, text = SYMBOLS[command]
        return f"<{element}>{text}</{element}>"
    if token["other"] == "{":
        return _row(tokens, "}")
    if token["other"].isalpha():
        return f"<mi>{token['other']}</mi>"
    return f"<mo>{escape({'-': '−', '*': '∗'}.get(token['other'], token['other']))}</mo>"
