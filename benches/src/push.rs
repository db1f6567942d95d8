//! A developer's waiting time: `epsilon deploy` after a change of one line until the new code
//! answered, `epsilon deploy` without a change, and a first one with many packages (`packages`).

mod packages;

use crate::{
    Plan,
    report::{Push, Report, median},
};
use epsilon_e2e::{project, up::Epsilon};
use std::time::Instant;

fn source(text: &str) -> String {
    format!("exports.pushed = (req, res) => res.send('{text}')\n")
}

/// Measures and reports.
pub(crate) async fn measure(up: &Epsilon, plan: Plan, report: &mut Report) {
    eprintln!("deployments …");
    let project = project!("pushed", { "index.js" => source("first") });
    let folder = project.path();
    up.cli_in(&folder, &["deploy"]).await.expect(0);
    let mut changed = Vec::new();
    let mut unchanged = Vec::new();
    for push in 0..plan.pushes {
        // A text that no earlier run has built: the image must be made.
        let text = format!("{push} of {} at {:?}", up.vm(), std::time::SystemTime::now());
        project.write("index.js", source(&text));
        let began = Instant::now();
        up.cli_in(&folder, &["deploy"]).await.expect(0);
        let answer = up.get("/pushed").await.expect(200);
        changed.push(began.elapsed().as_secs_f64() * 1e3);
        assert_eq!(answer.text(), text);

        let began = Instant::now();
        up.cli_in(&folder, &["deploy"]).await.expect(0);
        unchanged.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let packages = packages::measure(up, plan).await;
    report.push(Push {
        changed_ms: median(changed),
        unchanged_ms: median(unchanged),
        packages: packages.count,
        packed_ms: packages.deploy_ms,
        npm_ms: packages.npm_ms,
    });
}
