//! `build:` of a project: the command has everything, and its result is deployed.

use super::lab::{Lab, Served, file_of};
use epsilon_api::admin::Step;

const PACKAGE: (&str, &str) = (
    "package.json",
    r#"{"name":"lab-build","main":"dist/index.js","dependencies":{"ms":"2.1.3"},"devDependencies":{"typescript":"5.9.2"}}"#,
);
const SOURCE: (&str, &str) = (
    "src/index.ts",
    "import ms from 'ms';\nenum Unit { Second = 's' }\nexport const hello = (req: any, res: any) => res.send(String(ms('2' + Unit.Second)));\n",
);
const SETTINGS: (&str, &str) = (
    "tsconfig.json",
    r#"{"compilerOptions":{"outDir":"dist","rootDir":"src","module":"commonjs","target":"es2022","esModuleInterop":true,"noImplicitAny":false}}"#,
);

#[tokio::test(flavor = "multi_thread")]
async fn dev_dependency_compiles_the_deployed_code() {
    let lab = Lab::new().await;
    let yaml = ("epsilon.yaml", "build: tsc --noCheck && echo it is done\n");
    let files = [PACKAGE, SOURCE, SETTINGS, yaml];
    let built = lab.build(&files).await.unwrap();
    assert!(lab.lines().contains("it is done"), "{}", lab.lines());
    let image = &built.functions[0].image.reference;
    assert_eq!(Served::run(image).get("/"), "2000");
    assert_eq!(file_of(image, "/app/node_modules/typescript/package.json"), None);
    assert_eq!(file_of(image, "/app/node_modules/.bin/tsc"), None);
    let again = lab.build(&files).await.unwrap();
    assert_eq!(built, again);
    assert!(!lab.lines().contains("it is done"), "{}", lab.lines());
    assert_eq!(lab.done(Step::Ship), "0 images");
    lab.end().await;
}

/// As `patch-package` and `prisma generate` do.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_may_change_packages() {
    let lab = Lab::new().await;
    let package = ("package.json", r#"{"name":"lab-patch","dependencies":{"ms":"2.1.3"}}"#);
    let index = ("index.js", "exports.hello = (req, res) => res.send(require('ms'));");
    let plain =
        ("index.js", "exports.hello = (req, res) => res.send(String(require('ms')('2s')));");
    let yaml = (
        "epsilon.yaml",
        "build: |\n  echo \"module.exports = 'patched'\" > node_modules/ms/index.js\n",
    );
    let built = lab.build(&[package, index, yaml]).await.unwrap();
    assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), "patched");
    // Other projects do not get the changed one.
    let built = lab.build(&[package, plain]).await.unwrap();
    assert_eq!(Served::run(&built.functions[0].image.reference).get("/"), "2000");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_command_and_invalid_result_are_reported() {
    let lab = Lab::with("{install_memory: 128MiB, install_size: 64MiB}").await;
    let index = ("index.js", "exports.hello = (req, res) => res.send('hi');");
    for (command, says) in [
        ("echo no such type >&2; exit 2", "ended with exit status 2\nno such type"),
        ("ln -s /etc out", "absolute path"),
        ("mkfifo pipe", "`pipe` is a device, a pipe or a socket"),
        ("echo 'project: other' > epsilon.yaml", "changed `epsilon.yaml`"),
        ("rm -rf node_modules; ln -s /etc node_modules", "replaced `node_modules`"),
        ("for n in $(seq 100); do head -c 10M /dev/zero > $n; done; sleep 60", "more than 64MiB"),
        (
            "node -e 'const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1))'",
            "more than 128MiB",
        ),
    ] {
        let yaml = format!("project: lab-fails\nbuild: {}\n", serde_json::json!(command));
        let err = lab.build(&[("epsilon.yaml", &yaml), index]).await.unwrap_err();
        assert!(err.message.contains(says), "{command}: {} {}", err.code, err.message);
    }
    lab.end().await;
}
