"""The Markdown of this repository: every link leads somewhere, every page is reached, decision records have one shape.

Of what the pages say, names are tested: paths of files in back-ticks, and the tables of crates and folders. A name in a page
is how a reader finds the code.
"""

import pathlib
import re
import tomllib
import unittest

import world

DOCS = world.ROOT / "docs"
FOLDERS = {"target", "node_modules", ".git"}


def pages():
    """All pages, but for those that tests use as data."""
    for page in sorted(world.ROOT.rglob("*.md")):
        inside = page.relative_to(world.ROOT).parts
        if not FOLDERS & set(inside) and "fixtures" not in inside:
            yield page


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def anchors(text):
    """The anchors that a page's headings have where it is shown, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def links(page):
    """Targets of a page's links that lead into this repository: file and anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if not re.match(r"[a-z]+:", target):
            file, _, anchor = target.partition("#")
            yield (page.parent / file).resolve() if file else page, anchor


class Docs(unittest.TestCase):
    def test_every_link_leads_somewhere(self):
        broken = []
        for page in pages():
            for file, anchor in links(page):
                if not file.exists():
                    broken.append(f"{page.relative_to(world.ROOT)}: {file}")
                elif anchor and anchor not in anchors(file.read_text()):
                    broken.append(f"{page.relative_to(world.ROOT)}: {file.name}#{anchor}")
        self.assertEqual(broken, [])

    def test_every_page_is_in_the_table_of_contents(self):
        reached = {file for file, _ in links(DOCS / "README.md")} | {file for file, _ in links(DOCS / "decisions/README.md")}
        missed = {page for page in DOCS.rglob("*.md") if page != DOCS / "README.md"} - reached
        self.assertEqual(missed, set())

    def test_decision_records_have_one_shape_and_no_holes(self):
        index = (DOCS / "decisions/README.md").read_text()
        records = sorted((DOCS / "decisions").glob("0*.md"))
        for number, record in enumerate(records, 1):
            self.assertTrue(record.name.startswith(f"{number:04}-"), f"{record.name} is number {number}")
            heading, _, status = record.read_text().splitlines()[:3]
            title = heading.removeprefix(f"# {number}. ")
            self.assertNotEqual(title, heading, f"{record.name}: `{heading}`")
            self.assertRegex(status, r"^\d{4}-\d\d-\d\d · (Accepted|Replaced)", record.name)
            date, state = status.split(" · ", 1)
            self.assertIn(f"| {number} | [{title}]({record.name}) | {date} | {state} |", index)

    def test_every_file_that_a_page_names_exists(self):
        """Paths from the root of the repository, as `gateway/src/call.rs`; `{a,b}` stands for each. Records of decisions and
        the changelog keep the names of their day."""
        roots = {entry.name for entry in world.ROOT.iterdir() if entry.is_dir()} - FOLDERS
        gone = []
        for page in pages():
            if "decisions" in page.parts or page.name == "CHANGELOG.md":
                continue
            for name in re.findall(r"`([\w.-]+/[\w./{},*-]+)`", without_code(page.read_text())):
                if name.split("/")[0] in roots:
                    gone += [f"{page.relative_to(world.ROOT)}: {path}" for path in expand(name) if not exists(path)]
        self.assertEqual(gone, [])

    def test_the_table_of_crates_says_what_cargo_does(self):
        page = (DOCS / "architecture.md").read_text().split("## Crates")[1].split("\n## ")[0]
        said = {}
        for name, dependencies in re.findall(r"^\| `([\w/-]+)` \|.*\| ([^|]*) \|$", page, re.M):
            now, _, tests = dependencies.partition("tests:")
            said[name] = tuple(set(re.findall(r"`([\w/-]+)`", part)) - {"aws"} for part in (now, tests))
        self.assertEqual(said, crates())

    def test_every_folder_of_the_parts_is_in_the_tables(self):
        page = (DOCS / "architecture.md").read_text().split("## Folders")[1].split("\n## ")[0]
        tables = dict(zip(re.findall(r"^\| `([\w-]+/src/)` \|", page, re.M), re.split(r"^\| `[\w-]+/src/` \|", page, flags=re.M)[1:]))
        self.assertEqual(set(tables), {"gateway/src/", "vm-agent/src/", "builder/src/"})
        for root, table in tables.items():
            folders = {entry.name for entry in (world.ROOT / root).iterdir() if entry.is_dir()} - {"snapshots"}
            self.assertEqual(set(re.findall(r"`([\w-]+)/`", table)), folders, root)

    def test_lines_of_prose_are_short(self):
        """So that a change of a word is a change of a line. Tables and code may be wide; some pages are generated."""
        wide = []
        for page in [*DOCS.rglob("*.md"), *world.ROOT.glob("*.md")]:
            if page.name in ("config.md", "errors.md"):
                continue
            inside = False
            for number, line in enumerate(page.read_text().splitlines(), 1):
                inside ^= line.lstrip().startswith("```")
                if len(line) > 145 and not inside and not line.lstrip().startswith(("|", "<!--")):
                    wide.append(f"{page.relative_to(world.ROOT)}:{number}: {len(line)}")
        self.assertEqual(wide, [], "wrap at 140 columns")


def crates():
    """For each crate of the workspace, by its folder: which others it and which others only its tests depend on."""
    workspace = tomllib.loads((world.ROOT / "Cargo.toml").read_text())["workspace"]["members"]
    manifests = {folder: tomllib.loads((world.ROOT / folder / "Cargo.toml").read_text()) for folder in workspace}
    names = {manifest["package"]["name"]: folder for folder, manifest in manifests.items()}

    def used(folder, table):
        return {names[name] for name in manifests[folder].get(table, {}) if name in names} - {folder}

    return {
        folder: (used(folder, "dependencies"), used(folder, "dev-dependencies") - used(folder, "dependencies"))
        for folder in workspace
    }


def expand(name):
    found = re.match(r"(.*?)\{([^}]*)\}(.*)", name)
    if not found:
        return [name]
    return [path for choice in found[2].split(",") for path in expand(found[1] + choice + found[3])]


def exists(path):
    return any(True for _ in world.ROOT.glob(path)) if "*" in path else pathlib.Path(world.ROOT, path).exists()
