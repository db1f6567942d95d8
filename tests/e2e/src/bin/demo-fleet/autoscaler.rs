//! The second half: the load decides how many VMs there are. moto simulates EC2 Auto Scaling and
//! has no machines; this simulates them: an agent for each instance of the group.

use crate::{note, title};
use epsilon_api::autoscaler::{AutoscalerDecision, AutoscalerInfo};
use epsilon_cloud_aws::{
    moto::Moto,
    scale_group::{ScaleGroup, in_moto},
};
use epsilon_e2e::{
    fleet::{Fleet, Plan},
    load::Loads,
    project,
    project::Project,
    wait::within,
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

const FUNCTIONS: usize = 6;
const CALLERS: usize = 4;
const MOST: i32 = 4;
/// Interval between two reads of the group.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Longest wait for the group to follow the load: it takes half a minute to shrink on an idle
/// machine.
const FOLLOW_LIMIT: Duration = Duration::from_secs(180);

/// moto, the group in it, and which decisions of the autoscaler were shown.
pub(crate) struct Cloud {
    group: ScaleGroup,
    began: Instant,
    shown: Option<AutoscalerDecision>,
    _moto: Moto,
}

/// A fleet that starts with the group's one VM.
pub(crate) async fn start() -> (Fleet, Cloud) {
    title("The load decides how many VMs there are");
    note(
        "moto simulates EC2 Auto Scaling, seconds stand for minutes; a VM has room for four instances",
    );
    let moto = Moto::start().await;
    let group = in_moto::group(&moto, 1, MOST, 1).await;
    let settings = format!(
        "{{ driver: aws-asg, group: vms, endpoint: '{}', max: {MOST}, place: 128MiB, headroom: 1, every: 1s, \
           stable_window: 4s, scale_in_after: 4s, boot_time: 1s, trend_limit: 1 }}",
        moto.endpoint()
    );
    note(&format!("EPSILON_GATEWAY_AUTOSCALE=\"{settings}\""));
    let gateway_env = [
        ("EPSILON_GATEWAY_AUTOSCALE", settings.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "eu-central-1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let fleet = Fleet::start(Plan {
        agents: 0,
        config: Some("vm_agent: { memory: 512MiB }".into()),
        gateway_env: gateway_env.to_vec(),
        ..Plan::default()
    })
    .await;
    (fleet, Cloud { group, began: Instant::now(), shown: None, _moto: moto })
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

    /// Keeps simulating EC2 until interrupted.
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

    /// Shows new decisions, and does what EC2 would.
    async fn look(&mut self, fleet: &mut Fleet) {
        let info = fleet.gateways[0].admin("/v1/autoscaler").await;
        let info: AutoscalerInfo = serde_json::from_value(info).unwrap();
        let newest = info.decisions.first().cloned();
        let new = info.decisions.into_iter().take_while(|made| Some(made) != self.shown.as_ref());
        for made in new.collect::<Vec<_>>().into_iter().rev() {
            self.show(&made);
        }
        self.shown = newest;

        let group = self.group.describe().await.expect("moto answers");
        let there: BTreeSet<_> = group.instances.into_iter().map(|instance| instance.id).collect();
        for id in &there {
            if fleet.agents.iter().all(|agent| agent.id() != id) {
                self.say(&format!("EC2 boots {id}"));
                let variable = ("EPSILON_VM_AGENT_ID".to_owned(), id.clone());
                fleet.add_agent_with(|launch| launch.env.push(variable)).await;
            }
        }
        while let Some(at) = fleet.agents.iter().position(|agent| !there.contains(agent.id())) {
            let mut agent = fleet.agents.remove(at);
            self.say(&format!("EC2 ends {}", agent.id()));
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
