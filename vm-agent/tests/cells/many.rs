//! More first calls at once than there are cells.

use crate::support::{Base, World, code, function, until};
use epsilon_api::function::Version;
use futures_util::future::join_all;
use http_body_util::BodyExt;
use std::{num::NonZeroU32, sync::Arc};

const CODE: &str = "exports.hello = (req, res) => res.send('hello')";

/// All at once; each answer's code.
async fn call_all<'a>(
    world: &World,
    versions: impl IntoIterator<Item = &'a Arc<Version>>,
) -> Vec<&'static str> {
    join_all(versions.into_iter().map(async |version| {
        let answer = world.get(version, "/").await;
        let code = code(&answer);
        if let Ok(answer) = answer {
            drop(answer.response.into_body().collect().await.unwrap());
        }
        code
    }))
    .await
}

#[tokio::test]
async fn first_calls_to_one_and_many_functions_are_answered() {
    let base = Base::new();
    let world = World::new("{}").await;
    let one =
        function(&world, &base, CODE, |spec| spec.max_instances = NonZeroU32::new(4).unwrap());
    world.until_ready(&one, 2).await;
    let codes = call_all(&world, std::iter::repeat_n(&one, 50)).await;
    assert!(codes.iter().all(|code| *code == "OK"), "{codes:?}");
    let is_starting =
        |world: &World| world.status().instances.iter().any(|i| i.state.as_str() == "starting");
    until(|| is_starting(&world), |some| !some).await;
    let through_cells = |world: &World| world.assigned("ready") + world.assigned("booted");
    let before = through_cells(&world);
    assert!((1..=4).contains(&before), "{before} starts for one function");

    let many: Vec<_> = (0..10).map(|_| function(&world, &base, CODE, |_| {})).collect();
    world.until_ready(&one, 2).await;
    let codes = call_all(&world, &many).await;
    assert!(codes.iter().all(|code| *code == "OK"), "{codes:?}");
    assert_eq!(through_cells(&world) - before, 10);
    assert_eq!(world.assigned("image"), 0);
    assert!(world.assigned("ready") >= 2, "ready ones were used");
    for version in &many {
        world.retire(version).await;
    }
    world.retire(&one).await;
    until(|| world.mounts().len(), |count| *count == 0).await;
    world.end().await;
}
