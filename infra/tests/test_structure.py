"""Files of one crate do not use each other in circles, but for those named here, which may only become fewer."""

import pathlib
import tempfile
import unittest

import structure
import world

# Two halves of one thing each; none may have more than four files.
KNOWN = {
    # An engine sets the firewall that the settings describe.
    frozenset({"vm-agent/src/engine.rs", "vm-agent/src/network/reach.rs"}),
}


class Structure(unittest.TestCase):
    def test_no_new_circles(self):
        found = {}
        for crate in structure.crates(world.ROOT):
            found.update(crate.circles())
        new = ["\n".join(found[files]) for files in found if files not in KNOWN]
        self.assertEqual(new, [], "files that use each other in a circle; what ties them:\n" + "\n\n".join(new))
        self.assertEqual(KNOWN - set(found), set(), "gone: take them off the list")
        self.assertLessEqual(max(map(len, KNOWN)), 4)

    def test_a_circle_is_seen_and_named(self):
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "one/src")
            (source / "b").mkdir(parents=True)
            for name, text in {
                "lib.rs": "mod a; mod b; mod c; pub use a::Shown;",
                "a.rs": "use crate::{b::{self, inner::Thing}, c};\npub struct Shown; // use crate::d::No;\nfn f() { b::make(); }",
                "b.rs": "pub(crate) mod inner;\npub fn make() { let _ = \"crate::c::No\"; }",
                "b/inner.rs": "use super::make;\npub struct Thing;\nfn f() -> crate::Shown { todo!() }",
                "c.rs": "#[cfg(test)]\nmod tests { use crate::a::Shown; }\n#[cfg(test)]\nuse crate::a::Shown;",
            }.items():
                (source / name).write_text(text)
            [crate] = structure.crates(folder)
            self.assertEqual(crate.circles(), {
                frozenset({"one/src/a.rs", "one/src/b/inner.rs"}): [
                    "one/src/a.rs → one/src/b/inner.rs: Thing", "one/src/b/inner.rs → one/src/a.rs: Shown"]})
