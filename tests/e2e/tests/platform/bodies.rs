//! Bodies that try to exhaust the instance that reads them: small ones that inflate, nested lists,
//! many at once. The wrapper's own handling of bodies is in its tests.

use crate::up;
use epsilon_e2e::{http::Call, project};
use flate2::{Compression, write::GzEncoder};
use futures_util::future::join_all;
use std::io::Write;

const MIB: usize = 1 << 20;
/// Concurrent callers of a function with as many slots.
const CALLERS: usize = 20;

/// `[[],[],…]`: needs most memory for its bytes when parsed.
fn lists(bytes: usize) -> String {
    format!("[{}[]]", "[],".repeat(bytes / 3))
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn no_body_ends_an_instance() {
    let up = up().await;
    // Both return which process answered; one of them never reads the body.
    let code = r#"
        const process = require("crypto").randomUUID();
        const named = (res) => res.set("x-process", process);
        exports.bodiesRead128 = (req, res) => named(res).send(String(req.body.length));
        exports.bodiesUnread128 = (req, res) => named(res).send("unread");
        exports.bodiesRead256 = exports.bodiesRead128;
        exports.bodiesUnread256 = exports.bodiesUnread128;"#;
    let functions: String = [128, 256]
        .iter()
        .flat_map(|mib| ["Read", "Unread"].map(|kind| (kind, mib)))
        .map(|(kind, mib)| {
            format!(
                "  bodies{kind}{mib}: {{ memory: {mib}MiB, concurrency: {CALLERS}, maxInstances: 1, timeout: 20s }}\n"
            )
        })
        .collect();
    let manifest = format!("functions:\n{functions}");
    up.deploy(&project!("bodies", { "index.js" => code, "epsilon.yaml" => &manifest })).await;

    let bomb = gzip(&lists(30 * MIB));
    for function in ["bodiesRead128", "bodiesUnread128", "bodiesRead256", "bodiesUnread256"] {
        let target = format!("/{function}");
        let post = |body: Vec<u8>| Call::post(&target, "application/json", body);
        let packed = || post(bomb.clone()).header("content-encoding", "gzip");
        let before = post(b"[]".to_vec()).send(up.public()).await.expect(200);

        for call in [packed(), post(lists(4 * MIB).into()), post(lists(7 * MIB).into())] {
            let answer = call.send(up.public()).await;
            if function.contains("Unread") {
                assert_eq!(answer.text(), "unread");
            } else {
                answer.expect_error(413, "BODY_TOO_LARGE");
            }
        }
        for answer in join_all((0..CALLERS).map(|_| packed().send(up.public()))).await {
            assert!([200, 413].contains(&answer.status), "{answer}");
        }

        let after = post(b"[]".to_vec()).send(up.public()).await.expect(200);
        assert_eq!(before.header("x-process"), after.header("x-process"), "{function}");
    }
}
