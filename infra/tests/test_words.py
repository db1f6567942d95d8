"""Words that were retired stay retired: in code, log lines and documentation (retired_words.txt)."""

import pathlib
import re
import subprocess
import unittest

import world

LIST = pathlib.Path(__file__).with_name("retired_words.txt")
KINDS = (".rs", ".md", ".py", ".sh", ".js", ".mjs", ".yaml", ".toml")
# They speak of what was: words of their time stay.
RECORDS = ("CHANGELOG.md", "docs/decisions/", "infra/tests/test_words.py")


class Word:
    """One line of the list."""

    def __init__(self, line):
        self.pattern, self.instead, *allowed = (part.strip() for part in line.split(" => "))
        # A name in code stands by itself or ends another name's part: `Trouble`, `GitTrouble`, `TroubleKind`.
        pattern = rf"(?<![A-Z]){self.pattern}(?![a-z])" if self.pattern[0].isupper() else self.pattern
        self.expression = re.compile(pattern)
        self.allowed = re.compile(allowed[0]) if allowed else None

    def found_in(self, line):
        return bool(self.expression.search(line)) and not (self.allowed and self.allowed.search(line))


def words():
    lines = LIST.read_text().splitlines()
    return [Word(line) for line in lines if line and not line.startswith("#")]


def is_prose_of_a_name(word, line):
    """A capital word that begins a sentence is not a name: "Written by a test"."""
    return word.pattern[0].isupper() and not re.search(rf"\w{word.pattern}|{word.pattern}[\w:<({{,;]|\b(enum|struct|trait|type|class) {word.pattern}", line)


def uses(name, text, retired):
    """Each use of a retired word in a file, as a sentence."""
    retired = [word for word in retired if word.expression.search(text)]
    for number, line in enumerate(text.splitlines() if retired else [], 1):
        for word in retired:
            if word.found_in(line) and not is_prose_of_a_name(word, line):
                yield f"{name}:{number}: `{word.expression.search(line).group()}`; say: {word.instead}\n    {line.strip()}"


class Words(unittest.TestCase):
    def test_no_retired_words(self):
        listed = subprocess.run(["git", "ls-files"], cwd=world.ROOT, capture_output=True, text=True, check=True)
        retired, found = words(), []
        for name in listed.stdout.splitlines():
            path = pathlib.Path(world.ROOT, name)
            if name.endswith(KINDS) and not name.startswith(RECORDS) and path.is_file():
                found += uses(name, path.read_text(), retired)
        self.assertEqual(found, [], "retired words (infra/tests/retired_words.txt):\n" + "\n".join(found))

    def test_names_and_prose_are_told_apart(self):
        retired = words()
        for line, count in {
            "enum Trouble { Odd }": 1,
            "Err(GitTrouble::Odd)": 1,
            "## Troubleshooting": 0,
            "//! Written by the gateway at each push.": 0,
            "struct Written(u8);": 1,
            "the server runs as `nobody`": 0,
            "a call that nobody waits for": 1,
            'ask(gateway, "beat", &credential)': 0,
            "VMs beat each second": 1,
            "It is in a data base.": 1,
        }.items():
            self.assertEqual(len(list(uses("x", line, retired))), count, line)
