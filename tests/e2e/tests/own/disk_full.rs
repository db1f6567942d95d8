//! The data folder's disk is full while a project is deployed: the developer gets a clear error,
//! serving versions continue, and a project that fits can be deployed afterwards.

use epsilon_e2e::{
    project,
    up::{Epsilon, Settings},
};

/// Too large for the disk below, well within the builder's own limits, and incompressible.
fn noise() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(48 << 20);
    while bytes.len() < 48 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

#[tokio::test]
async fn a_full_disk_fails_the_deployment_and_nothing_else() {
    let settings = Settings { disk: Some("24m".into()), ..Settings::default() };
    let up = Epsilon::start_with(settings).await;
    let project = project!("squeeze", {
        "index.js" => "exports.squeeze = (req, res) => res.send('1')",
    });
    up.deploy(&project).await;
    project.write("noise.bin", noise());
    project.write("index.js", "exports.squeeze = (req, res) => res.send('2')");
    for _ in 0..2 {
        let failed = up.try_deploy(&project).await;
        let error = failed.failed();
        assert_eq!(error.code, "DISK_FULL", "{error:?}");
        assert!(error.hint.is_some(), "{error:?}");
        assert_eq!(up.get("/squeeze").await.expect(200).text(), "1");
    }
    std::fs::remove_file(project.path().join("noise.bin")).unwrap();
    up.deploy(&project).await;
    assert_eq!(up.get("/squeeze").await.expect(200).text(), "2");

    // No byte is left: a rollback that cannot be written fails, and succeeds when there is room.
    let filler = up.data().join("filler");
    let full = std::fs::write(&filler, noise()).expect_err("the disk is full");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let outcome = up.cli(&["rollback", "squeeze", "1"]).await;
    let serves = up.get("/squeeze").await.expect(200).text();
    assert_eq!(serves, if outcome.code == 0 { "1" } else { "2" }, "{outcome}");
    std::fs::remove_file(&filler).unwrap();
    up.cli(&["rollback", "squeeze", "1"]).await.expect(0);
    assert_eq!(up.get("/squeeze").await.expect(200).text(), "1");
}
