"""Tells what Python's json.loads reads from JSON documents.

One document a line, in base64, on the standard input. For each, one line on the standard output: its members, those of
data and extra behind them, or "!" and the reason of a refusal. A member is depth,kind,name,lower,text,number,digits:

    lower   the name in lower case, as an app that ignores case compares it
    number  the number as it is read, and the number that an app makes of a string
    digits  the number as it stands in the document (Python only)

name, lower and text are UTF-8 in hex. The first line names the parser.
"""

import base64
import json
import platform
import re
import sys

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


class Digits(str):
    pass


def once(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is repeated")
    return members


def number(value):
    """The same for every number that is equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return repr(value)


def converted(text):
    if not NUMBER.fullmatch(text):
        return ""
    try:
        return number(float(text) if any(c in text for c in ".eE") else int(text))
    except ValueError:  # more digits than sys.get_int_max_str_digits()
        return ""


def encoded(text):
    return text.encode("utf-8").hex()  # refuses lone surrogates


def members(document, exact, depth, out):
    for name, value in document.items():
        kind, text, value_number, digits = "nested", "", "", ""
        if value is None:
            kind = "null"
        elif isinstance(value, bool):
            kind, text = "boolean", encoded("true" if value else "false")
        elif isinstance(value, str):
            kind, text, value_number = "string", encoded(value), converted(value)
        elif isinstance(value, (int, float)):
            kind, value_number, digits = "number", number(value), exact[name]
        out.append(f"{depth},{kind},{encoded(name)},{encoded(name.lower())},{text},{value_number},{digits}")
        if depth == 1 and name in ("data", "extra") and isinstance(value, dict):
            members(value, exact[name], 2, out)


def read(body):
    # From bytes, as Flask and Django call it: a byte order mark is skipped.
    document = json.loads(body)
    exact = json.loads(body, parse_int=Digits, parse_float=Digits, object_pairs_hook=once)
    if not isinstance(document, dict):
        raise ValueError("no object")
    out = []
    members(document, exact, 1, out)
    return " ".join(out)


print("Python", platform.python_version())
for line in sys.stdin.buffer:
    try:
        print(read(base64.b64decode(line)))
    except (ValueError, RecursionError) as error:
        print("!" + str(error))
