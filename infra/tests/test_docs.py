"""The Markdown of this repository: every link leads somewhere, every page is reached, decision records have one shape.

Of what the pages say, names are tested: paths of files in back-ticks, and the tables of crates and folders. A name in a page
is how a reader finds the code. And figures: those that README and specification quote from the tables of benches/README.md.
"""

import pathlib
import re
import subprocess
import tomllib
import unittest

import world

DOCS = world.ROOT / "docs"
FOLDERS = {"target", "node_modules", ".git"}

WARM = ("measured", "p50 − socket's p50")
RATE = ("measured", "calls/s ÷ HAProxy's")
BENCH = ("measured", "Epsilon")
COLD = ("cold", "Epsilon")
BESIDE = ("cold", "reference")
RATIO = ("cold", "ratio or difference")
# What each page quotes: words of the page, with `{}` for the figure, and the cell of a table of benches/README.md that has it:
# the first cells of its row, the table's mark and the column. Who runs the bench again finds here what else has to change.
FIGURES = {
    "README.md": [
        ("an instance answers after {} (p99", ["first call of a small function"], COLD),
        ("(p99 {}); Docker's own create, start", ["first call of a small function"], COLD),
        ("first answer of the same image take {}.", ["first call of a small function"], BESIDE),
        ("on two cores, find few cells ready: p50 {}.", ["50 first calls at once to 50 functions"], COLD),
        ("gateway and agent add {} to a call", ["Epsilon, one thread", "1"], WARM),
        ("HAProxy in their place adds {}.", ["HAProxy, one thread", "1"], WARM),
        ("A one-line change answers its first call {} after", ["`epsilon deploy` of a one-line change"], BENCH),
        ("| first call, as published | {} |", ["first call of a small function"], COLD),
        ("in a ready cell | {} (p99", ["first call of a small function"], COLD),
        ("(p99 {}) | Docker's own create + start + first answer", ["first call of a small function"], COLD),
        ("first answer of the same image: {} |", ["first call of a small function"], BESIDE),
        ("69 npm packages | {} |", ["first call of Express middleware"], COLD),
        ("loading the same files: {} |", ["first call of Express middleware"], BESIDE),
        ("code in a registry on this machine | {} |", ["first call of a function whose code"], COLD),
        ("`docker pull` + create + start + first answer: {} |", ["first call of a function whose code"], BESIDE),
        ("(`isolation: call`) | {};", ["`isolation: call`, one call after the other, a cell"], COLD),
        ("; {} without a pause |", ["`isolation: call`, one call after the other, without"], COLD),
        ("from the image: {} |", ["`isolation: call`, one call after the other, a cell"], BESIDE),
        ("one thread, one connection | + {} |", ["Epsilon, one thread", "1"], WARM),
        ("| + {} | HAProxy, one thread: + 71 µs |", ["Epsilon, one thread", "1"], WARM),
        ("+ 83 µs | HAProxy, one thread: + {} |", ["HAProxy, one thread", "1"], WARM),
        ("the same with 8 connections | + {} |", ["Epsilon, one thread", "8"], WARM),
        ("+ 25 µs | HAProxy, one thread: + {} |", ["HAProxy, one thread", "8"], WARM),
        ("two cores, one connection | + {}: **missed**", ["Epsilon, as it starts", "1"], WARM),
        ("32 connections, one thread | {},", ["Epsilon, one thread", "1"], RATE),
        (", {} and 0.93 of HAProxy's", ["Epsilon, one thread", "8"], RATE),
        ("and {} of HAProxy's; by run", ["Epsilon, one thread", "32"], RATE),
        ("to its first answer | {} |", ["`epsilon deploy` of a one-line change"], BENCH),
        ("`epsilon deploy` without a change | {} |", ["`epsilon deploy` without a change"], BENCH),
        ("whole platform, idle | {} fresh", ["memory of `epsilon up`, idle"], BENCH),
        ("fresh, {} after the bench", ["memory of `epsilon up`, idle"], BENCH),
    ],
    "docs/specification.md": [
        ("over the container called directly | +{} with one thread", ["Epsilon, one thread", "1"], WARM),
        ("in the same run: +{});", ["HAProxy, one thread", "1"], WARM),
        ("as it starts: +{};", ["Epsilon, as it starts", "1"], WARM),
        ("at 8 connections, one thread: +{} (HAProxy", ["Epsilon, one thread", "8"], WARM),
        ("(HAProxy: +{})", ["HAProxy, one thread", "8"], WARM),
        ("start + first answer | {}, p99", ["first call of a small function"], COLD),
        (", p99 {}, 85.5×", ["first call of a small function"], COLD),
        ("p99 17.7 ms, {}×", ["first call of a small function"], RATIO),
        ("same files + 15 ms | {} less than bare", ["first call of Express middleware"], RATIO),
        ("≤ 60 ms p50 | {} |", ["first call of a function whose code"], COLD),
        ("than from the image | {}×;", ["`isolation: call`, one call after the other, a cell"], RATIO),
        ("; {}× without a pause", ["`isolation: call`, one call after the other, without"], RATIO),
        ("≥ 0.9 of it | {} (1.01", ["Epsilon, one thread", "32"], RATE),
        ("({} at one connection, 1.08", ["Epsilon, one thread", "1"], RATE),
        ("at one connection, {} at 8);", ["Epsilon, one thread", "8"], RATE),
        ("150 of 150; p50 {},", ["50 first calls at once to 50 functions"], COLD),
        ("p50 5.2 s, p99 {} on two cores", ["50 first calls at once to 50 functions"], COLD),
        ("files +0; memory +{} |", ["memory of `epsilon up`"], ("assignments", "ratio or difference")),
        ("and +{} after; side by side", ["the same over Docker's create + start alone"], ("measured", "ratio or difference")),
        ("≤ 1 s on one machine | {};", ["`epsilon deploy` of a one-line change"], BENCH),
        ("; {} when nothing changed", ["`epsilon deploy` without a change"], BENCH),
        ("after work: {} after", ["memory of `epsilon up`, idle"], BENCH),
        ("bench, {} fresh", ["memory of `epsilon up`, idle"], BENCH),
    ],
}
FIGURE = r"([\d.]*\d)(?: ?(µs|ms|s|MiB)\b)?"


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

    def test_every_short_path_is_the_end_of_a_path(self):
        """Where the folder is clear from the text, as `lease.rs` or `call/reply.rs`, also in diagrams."""
        files = subprocess.run(["git", "ls-files", "*.rs"], cwd=world.ROOT, capture_output=True, text=True, check=True)
        ends = {"/" + file for file in files.stdout.split()}
        gone = []
        for page in pages():
            if "decisions" in page.parts or page.name == "CHANGELOG.md":
                continue
            for name in sorted(set(re.findall(r"(?<![\w./<>{},*-])[\w{][\w./{},-]*\.rs\b", page.read_text()))):
                missed = [path for path in expand(name) if not any(end.endswith("/" + path) for end in ends)]
                gone += [f"{page.relative_to(world.ROOT)}: {path}" for path in missed]
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

    def test_figures_are_those_of_the_benches(self):
        wrong = []
        for page, figures in FIGURES.items():
            text = " ".join((world.ROOT / page).read_text().split())
            for phrase, row, (mark, column) in figures:
                here = [found.groups("") for found in re.finditer(re.escape(phrase).replace(r"\{\}", FIGURE), text)]
                cell = bench_cell(mark, row, column)
                there = re.findall(FIGURE, cell)
                wrong += [f"{page}: `{phrase}` is nowhere"] if not here else []
                wrong += [
                    f"{page}: `{phrase.replace('{}', ' '.join(figure).strip())}`: benches/README.md says `{cell}`"
                    for figure in here
                    if not any(same_figure(figure, other) for other in there)
                ]
        self.assertEqual(wrong, [])


def bench_cell(mark, row, column):
    """One cell of the tables between two marks of benches/README.md."""
    text = (world.ROOT / "benches/README.md").read_text().split(f"<!-- {mark}:")[1].split(f"<!-- /{mark} -->")[0]
    heads, cells = [], []
    for line in text.splitlines():
        before, cells = cells, [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells and set(line) <= set("|-: "):
            heads = before
        elif column in heads and cells[: len(row)][1:] == row[1:] and cells and cells[0].startswith(row[0]):
            return cells[heads.index(column)]
    raise AssertionError(f"no {row} with a column `{column}` in the table `{mark}` of benches/README.md")


def same_figure(quoted, measured):
    """Whether a quoted figure is a measured one, as it is or rounded: 5.2 s is 5201 ms."""
    units = {"µs": 0.001, "ms": 1, "s": 1000}
    (number, unit), (other, other_unit) = quoted, measured
    if unit != other_unit and not (unit in units and other_unit in units):
        return False
    decimals = len(number.partition(".")[2])
    scaled = float(other) * units.get(other_unit, 1) / units.get(unit, 1)
    return round(scaled, decimals) == float(number)


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
