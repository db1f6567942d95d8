//! The second half: the load decides how many VMs there are. The gateway runs a command of the
//! operator (the driver `exec`), which here only writes its orders down; this carries them out: an
//! agent for each ordered VM.

use crate::{note, title};
use epsilon_api::autoscaler::{AutoscalerDecision, AutoscalerInfo};
use epsilon_e2e::{
    fleet::{Fleet, Plan},
    load::Loads,
    project,
    project::Project,
    wait::within,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const FUNCTIONS: usize = 6;
const CALLERS: usize = 4;
const MOST: usize = 4;
/// The command: one line for each order, `COUNT` or `COUNT VM` (terminate it).
const COMMAND: &str = "#!/bin/sh\necho \"$1 $EPSILON_TERMINATE\" >>\"${0%/*}/orders\"\n";
/// Interval between two reads of the orders.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Longest wait for the group to follow the load: it takes half a minute to shrink on an idle
/// machine.
const FOLLOW_LIMIT: Duration = Duration::from_secs(180);

/// What a cloud would have: the ordered VMs. And which decisions of the autoscaler were shown.
pub(crate) struct Cloud {
    orders: Orders,
    began: Instant,
    shown: Option<AutoscalerDecision>,
}

/// The command's folder, and what its orders come to.
struct Orders {
    folder: TempDir,
    /// How many of its lines were carried out.
    done: usize,
    vms: Vec<String>,
    /// Number of the next VM.
    next: usize,
}

impl Orders {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let this = Self { folder, done: 0, vms: Vec::new(), next: 1 };
        fs::write(this.command(), COMMAND).unwrap();
        fs::set_permissions(this.command(), fs::Permissions::from_mode(0o700)).unwrap();
        this
    }

    fn command(&self) -> PathBuf {
        self.folder.path().join("scale")
    }

    /// The VMs that there have to be by all orders until now.
    fn vms(&mut self) -> &[String] {
        let text = fs::read_to_string(self.folder.path().join("orders")).unwrap_or_default();
        // The end of a line that is being written comes with the next read.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        for order in whole.lines().skip(self.done) {
            let (count, terminate) = order.split_once(' ').expect("the command writes two fields");
            self.vms.retain(|vm| vm != terminate);
            while self.vms.len() < count.parse().expect("the first is a count") {
                self.vms.push(format!("vm-{}", self.next));
                self.next += 1;
            }
            self.done += 1;
        }
        &self.vms
    }
}

/// A fleet that starts with the group's one VM.
pub(crate) async fn start() -> (Fleet, Cloud) {
    title("The load decides how many VMs there are");
    note(
        "A command of the operator's orders VMs (on AWS, an Auto Scaling group has them). Seconds stand for minutes; a VM has \
         room for four instances.",
    );
    let orders = Orders::new();
    let settings = format!(
        "{{ driver: exec, command: ['{}'], max: {MOST}, place: 128MiB, headroom: 1, every: 1s, \
           stable_window: 4s, scale_in_after: 4s, boot_time: 1s, trend_limit: 1 }}",
        orders.command().display()
    );
    note(&format!("EPSILON_GATEWAY_AUTOSCALE=\"{settings}\""));
    let fleet = Fleet::start(Plan {
        agents: 0,
        config: Some("vm_agent: { memory: 512MiB }".into()),
        gateway_env: vec![("EPSILON_GATEWAY_AUTOSCALE".into(), settings)],
        ..Plan::default()
    })
    .await;
    (fleet, Cloud { orders, began: Instant::now(), shown: None })
}

impl Cloud {
    /// Raises and lowers the load; returns whether no call was lost.
    pub(crate) async fn act(&mut self, fleet: &mut Fleet) -> bool {
        println!("\n{:>6}  {:>6}  {:>5}  why, and what was done", "after", "wanted", "there");
        self.follow(fleet, |fleet| fleet.agents.len() == 1).await;
        fleet.deploy(&busy()).await;
        self.say(&format!("load: {} callers of {FUNCTIONS} functions", FUNCTIONS * CALLERS));
        let public = fleet.gateways[0].public();
        let loads = Loads::start(public, (0..FUNCTIONS).map(|f| format!("/f{f}")), CALLERS);
        self.follow(fleet, |fleet| fleet.agents.len() > 2).await;
        loads.more(500).await;
        self.look(fleet).await;
        let mut tally = loads.stop().await;

        self.say("load: one caller of one function");
        let loads = Loads::start(public, ["/f0"], 1);
        self.follow(fleet, |fleet| fleet.agents.len() == 1).await;
        tally.merge(loads.stop().await);
        println!("\ncalls answered 200: {}   anything else: {}", tally.of(200), tally.lost());
        tally.lost() == 0
    }

    /// Keeps carrying out orders until interrupted.
    pub(crate) async fn stay(&mut self, fleet: &mut Fleet) -> ! {
        let gateway = &fleet.gateways[0];
        title("Running until Ctrl-C");
        println!("export EPSILON_GATEWAY=http://{}", gateway.control());
        println!(
            "export EPSILON_KEY=$(cat {})",
            gateway.program.data().join("admin.key").display()
        );
        println!(
            "epsilon vms; epsilon autoscaler; epsilon invoke f0; curl http://{}/f0",
            gateway.public()
        );
        loop {
            self.look(fleet).await;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Continues until the fleet is in this state and each gateway considers it ready.
    async fn follow(&mut self, fleet: &mut Fleet, is_there: fn(&Fleet) -> bool) {
        within("the group follows the load", FOLLOW_LIMIT, async {
            while !is_there(fleet) {
                self.look(fleet).await;
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            fleet.all_ready().await;
        })
        .await;
    }

    /// Shows new decisions, and does what a cloud would.
    async fn look(&mut self, fleet: &mut Fleet) {
        let info = fleet.gateways[0].admin("/v1/autoscaler").await;
        let info: AutoscalerInfo = serde_json::from_value(info).unwrap();
        let newest = info.decisions.first().cloned();
        let new = info.decisions.into_iter().take_while(|made| Some(made) != self.shown.as_ref());
        for made in new.collect::<Vec<_>>().into_iter().rev() {
            self.show(&made);
        }
        self.shown = newest;

        let vms = self.orders.vms().to_vec();
        for id in &vms {
            if fleet.agents.iter().all(|agent| agent.id() != id) {
                self.say(&format!("the cloud boots {id}"));
                let variable = ("EPSILON_VM_AGENT_ID".to_owned(), id.clone());
                fleet.add_agent_with(|launch| launch.env.push(variable)).await;
            }
        }
        while let Some(at) = fleet.agents.iter().position(|agent| !vms.contains(&agent.id().into()))
        {
            let mut agent = fleet.agents.remove(at);
            self.say(&format!("the cloud ends {}", agent.id()));
            agent.program.terminate().await;
        }
    }

    fn show(&self, made: &AutoscalerDecision) {
        let mut why = made.reason.clone();
        if !made.steps.is_empty() {
            why = format!("{why} → {}", made.steps.join(", "));
        }
        if let Some(problem) = &made.problem {
            why = format!("{why}; failed: {problem}");
        }
        println!("{}  {:>6}  {:>5}  {why}", self.after(), made.wanted, made.current);
    }

    /// Prints an event outside of the autoscaler.
    fn say(&self, text: &str) {
        println!("{}  {:>6}  {:>5}  * {text}", self.after(), "", "");
    }

    fn after(&self) -> String {
        format!("{:>4.1} s", self.began.elapsed().as_secs_f64())
    }
}

/// Functions that are busy nearly all the time when they are called without pauses.
fn busy() -> Project {
    let mut code =
        "const config = { memory: '128MiB', concurrency: 16, maxInstances: 1 };\n".to_owned();
    for index in 0..FUNCTIONS {
        code.push_str(&format!(
            "exports.f{index} = {{ config, func: (req, res) => setTimeout(() => res.send('f{index}'), 200) }};\n"
        ));
    }
    project!("busy", { "index.js" => code })
}
