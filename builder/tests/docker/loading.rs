//! Code that does not load, and cancelled builds: a clear error, and nothing left.

use super::lab::{Lab, archive, until};
use epsilon_api::{
    admin::Step,
    body,
    build::{BuildError, BuildJob},
    ids::DeploymentId,
};
use std::sync::Arc;

async fn refused(settings: &str, code: &str) -> BuildError {
    let lab = Lab::with(settings).await;
    let err = lab.build(&[("index.js", code)]).await.unwrap_err();
    lab.end().await;
    err
}

macro_rules! not_loaded {
    ($($name:ident: $code:expr => $says:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let err = refused("{inspect_timeout: 2s}", $code).await;
            assert_eq!(err.code, "LOAD_FAILED", "{err:?}");
            assert!(err.message.contains($says), "{}", err.message);
            assert!(!err.message.contains("/tmp/") && !err.message.contains("/work/"), "{}", err.message);
        }
    )*};
}

not_loaded! {
    a_syntax_error: "exports.hello = (req, res) => {" => "SyntaxError";
    a_throw: "throw new Error('no shop today')" => "no shop today";
    an_exit: "process.exit(3)" => "3";
    a_silent_exit: "process.exit(0)" => "index.js";
    a_hang: "for (;;) {}" => "did not finish loading";
    a_missing_module: "require('no-such-module')" => "no-such-module";
    a_flood_of_the_answer: "const w = () => { for (;;) require('fs').appendFileSync(process.env.EPSILON_INSPECT_OUT, 'x'.repeat(1 << 20)); }; w()" => "";
    a_killed_inspector: "process.kill(process.ppid, 'SIGKILL'); for (;;) {}" => "while it was loaded";
}

#[tokio::test(flavor = "multi_thread")]
async fn code_out_of_memory_is_reported() {
    let code = "const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1));";
    let err = refused("{inspect_memory: 128MiB}", code).await;
    assert_eq!(err.code, "LOAD_FAILED", "{err:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_code_has_no_network_and_cannot_write() {
    let lab = Lab::new().await;
    let code = "const fs = require('fs');\n\
        try { fs.writeFileSync('/app/x', ''); process.exit(1); } catch {}\n\
        try { fs.writeFileSync('/etc/x', ''); process.exit(1); } catch {}\n\
        if (Object.keys(require('os').networkInterfaces()).some((n) => n !== 'lo')) process.exit(1);\n\
        exports.hello = (req, res) => res.end();";
    lab.build(&[("index.js", code)]).await.unwrap();
    assert!(!lab.done(Step::Inspect).contains("cached"));
    lab.build(&[("index.js", code)]).await.unwrap();
    assert!(lab.done(Step::Inspect).contains("cached"));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_code_sees_the_manifests_environment() {
    let lab = Lab::new().await;
    let yaml = "project: lab-env\nfunctions:\n  hello: { env: { SHOP: main } }\n";
    let code =
        "if (!process.env.SHOP) throw new Error('no SHOP');\nexports.hello = (q, s) => s.end();";
    lab.build(&[("epsilon.yaml", yaml), ("index.js", code)]).await.unwrap();
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_given_up_leaves_nothing() {
    let lab = Lab::new().await;
    let job = BuildJob {
        deployment: DeploymentId::random(),
        archive: body::full(archive(&[("index.js", "for (;;) {}")])),
        folder: Some("lab".into()),
        only: Vec::new(),
        log: Arc::new(super::lab::Log::default()),
    };
    let builder = lab.app().builder();
    let build = tokio::spawn(async move { builder.build(job).await });
    until("a container", || async { lab.left().contains("epsilon-inspect-") }).await;
    build.abort();
    assert!(build.await.is_err());
    until("a clean machine", || async { lab.is_clean() }).await;
    lab.end().await;
}
