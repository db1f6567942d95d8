//! Which functions a change rebuilds, and what the log reports, with the inspector in its own
//! image.

use super::lab::{Lab, docker};
use epsilon_api::{admin::Step, build::Built};

const INDEX: &str = "const { ha } = require('./lib/a');\nconst { hb } = require('./lib/b');\n\
    exports.a = { func: (req, res) => ha(res), config: { timeout: 10_000 } };\n\
    exports.b = (req, res) => hb(res);\n";
const A: &str = "exports.ha = (res) => res.send('a');";
const B: &str = "exports.hb = (res) => res.send('b');";

fn digests(built: &Built) -> [&str; 2] {
    [&built.functions[0].image.digest, &built.functions[1].image.digest]
}

#[tokio::test(flavor = "multi_thread")]
async fn change_rebuilds_only_functions_that_reach_it() {
    let lab = Lab::new().await;
    let first = lab.build(&[("index.js", INDEX), ("lib/a.js", A), ("lib/b.js", B)]).await.unwrap();
    let changed = "exports.hb = (res) => res.send('bb');";
    let second =
        lab.build(&[("index.js", INDEX), ("lib/a.js", A), ("lib/b.js", changed)]).await.unwrap();
    assert_eq!(digests(&first)[0], digests(&second)[0]);
    assert_ne!(digests(&first)[1], digests(&second)[1]);
    assert_eq!(lab.done(Step::Image), "1 composed, 1 unchanged");
    let lines = lab.lines();
    assert!(lines.contains("note: built `b`: `lib/b.js` changed"), "{lines}");
    assert!(lines.contains("note: not rebuilt, no file that they reach changed: `a`"), "{lines}");

    let patched = format!("{changed} globalThis.patched = true;");
    let third =
        lab.build(&[("index.js", INDEX), ("lib/a.js", A), ("lib/b.js", &patched)]).await.unwrap();
    assert_ne!(digests(&second)[0], digests(&third)[0], "loading b.js does something now");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dynamic_import_rebuilds_all_and_is_logged() {
    let lab = Lab::new().await;
    let lazy = format!("{INDEX}const load = (name) => require('./lib/' + name);\n");
    let files = |b| [("index.js", lazy.as_str()), ("lib/a.js", A), ("lib/b.js", b)];
    let first = lab.build(&files(B)).await.unwrap();
    let second = lab.build(&files("exports.hb = (res) => res.send('bb');")).await.unwrap();
    assert_ne!(digests(&first)[0], digests(&second)[0]);
    assert_ne!(digests(&first)[1], digests(&second)[1]);
    let lines = lab.lines();
    assert!(lines.contains("note: built `a`, `b`: `lib/b.js` changed"), "{lines}");
    assert!(lines.contains("at index.js:5: require('./lib/' + name)"), "{lines}");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_functions_image_holds_no_bundler() {
    let lab = Lab::new().await;
    let built = lab.build(&[("index.js", "exports.hello = (q, s) => s.end();")]).await.unwrap();
    let image = &built.functions[0].image.reference;
    assert_eq!(docker(&["run", "--rm", "--entrypoint", "ls", image, "/epsilon"]), "wrapper");
    lab.end().await;
}
