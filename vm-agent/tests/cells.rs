//! Cold starts through cells, on this machine's Docker: what they serve, that they are as closed as any instance, and that nothing
//! is left of them, whatever goes wrong.
//!
//! Needs root and `epsilon/runtime-node:current`, which `epsilon up` and the builder's tests make; the wrapper in it is replaced
//! by that of this checkout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "cells/support.rs"]
mod support;

use epsilon_api::error::CallError;
use support::{Base, Function, World, code, docker, text};

const CODE: &str = r#"
let calls = 0;
const fs = require('node:fs');
exports.hello = (req, res) => {
  if (req.path === '/count') return res.send(String(++calls));
  if (req.path === '/cwd') return res.send(process.cwd());
  if (req.path === '/write') { try { fs.writeFileSync('/app/x', ''); } catch (e) { return res.send(e.code); } }
  if (req.path === '/mounts') return res.send(fs.readFileSync('/proc/self/mountinfo', 'utf8'));
  if (req.path === '/crash') process.exit(7);
  if (req.path === '/log') { console.log('said this'); return res.send('logged'); }
  res.send('hello ' + (process.env.WHO ?? 'world'));
};
"#;

#[tokio::test]
async fn a_cold_start_through_a_cell() {
    let (base, world) = (Base::new(), World::new("{}").await);
    let hello =
        Function::new(&base, CODE, |spec| drop(spec.env.insert("WHO".into(), "you".into())));
    let other = Function::new(&base, CODE, |_| {});
    // Seen once, cells are kept for what comes.
    world.vm().fetch(hello.version()).await.unwrap();
    world.until_ready(2).await;

    let answer = world.get(&hello, "/").await.unwrap();
    let phases = answer.spent.start.unwrap();
    println!("cold start: {phases:?}");
    assert!(phases.create.is_zero() && phases.start.is_zero() && phases.pull.is_zero());
    assert!(!phases.cell.is_zero() && !phases.init.is_zero());
    assert_eq!(text(answer).await, "hello you");
    assert_eq!(world.text(&hello, "/count").await, "1");
    assert_eq!(world.text(&hello, "/count").await, "2", "state survives between calls");
    assert_eq!(world.text(&hello, "/cwd").await, "/app");
    assert_eq!(world.text(&hello, "/write").await, "EROFS");
    assert_eq!(world.text(&hello, "/log").await, "logged");
    world.line(&hello, "said this").await;

    assert_eq!(world.text(&other, "/").await, "hello world");
    assert_eq!(code(&world.get(&hello, "/crash").await), "FUNCTION_CRASHED");
    assert_eq!(world.text(&hello, "/count").await, "1", "a new instance");
    world.end().await;
}
