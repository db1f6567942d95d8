//! Every folder of `examples/` deploys unchanged, and each of its functions answers. The answers
//! themselves are shown by `make demo`.

use epsilon_e2e::{project::copy_of, up::Epsilon};
use std::path::Path;

#[tokio::test]
async fn every_example_deploys_and_every_function_of_it_answers() {
    // A platform of its own: examples have the most common names.
    let up = Epsilon::start().await;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut folders: Vec<_> = std::fs::read_dir(examples)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "there are examples");
    for folder in folders {
        let deployment = up.deploy(&copy_of(&folder)).await;
        let functions = &deployment.done().functions;
        assert!(!functions.is_empty(), "{}", folder.display());
        for function in functions {
            let answer = up.get(&format!("/{}", function.name)).await;
            // Some need a body or a handshake; none may fail by itself.
            assert!(answer.status < 500, "{} of {}: {answer}", function.name, folder.display());
        }
    }
}
