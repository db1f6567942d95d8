//! A fleet of real processes: gateways, a builder and agents that join, functions that stay on
//! their VMs, and faults under constant load, each call counted by its result. One test at a time:
//! each starts half a dozen processes and measures times.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod autoscale;
mod calls;
mod engines;
mod faults;
mod gateways;
mod joining;
mod lent;
mod links;
mod machines;
mod routing;

use epsilon_e2e::{project, project::Project};
use lent::Spare;
use std::sync::{
    LazyLock,
    atomic::{AtomicU32, Ordering},
};
use tokio::sync::{Mutex, MutexGuard};

/// One fleet at a time.
static TURN: LazyLock<Mutex<Spare>> = LazyLock::new(Mutex::default);

/// The lock for a test with a fleet of its own.
async fn turn() -> MutexGuard<'static, Spare> {
    TURN.lock().await
}

/// A project of small functions, `f0`, `f1`…; each answers with its name and its instance. A
/// different source each time: consecutive fleets share the engine, and so would share its images.
fn functions(count: usize) -> Project {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut code = format!(
        "// Number {number}.\nconst instance = process.env.HOSTNAME;\n\
         const config = {{ memory: '128MiB', concurrency: 16, maxInstances: 2, timeout: 30_000 }};\n"
    );
    for index in 0..count {
        code.push_str(&format!(
            "exports.f{index} = {{ config, func: (req, res) => {{\n\
               if (req.path === '/slow') return setTimeout(() => res.send('late'), 3000);\n\
               if (req.path === '/hints') {{ res.writeEarlyHints({{ link: '</s.css>; rel=preload; as=style' }}); return setTimeout(() => res.send('page'), 50); }}\n\
               if (req.path === '/long') {{ res.write('begun '); return setTimeout(() => res.end('ended'), 3000); }}\n\
               setTimeout(() => res.send('f{index} ' + instance), 5); }} }};\n"
        ));
    }
    project!("many", { "index.js" => code })
}
