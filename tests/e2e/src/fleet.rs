//! A fleet of real processes on this machine: gateways, a builder and agents, each with a data
//! folder of its own, all on the one Docker engine. Removed with all its resources, like
//! [`crate::up`].

use crate::{
    deploy::{self, Deployment},
    http::{Answer, Call},
    program::{Launch, Program},
    project::Project,
    wait::{SOON, until},
};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Composition of a fleet.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of gateways.
    pub gateways: usize,
    /// Number of agents.
    pub agents: usize,
    /// The gateways' store; `None`: a file of the first gateway.
    pub store: Option<String>,
    /// Settings of all programs (YAML).
    pub config: Option<String>,
    /// Address that gateways listen on.
    pub host: IpAddr,
    /// Additional environment of gateways.
    pub gateway_env: Vec<(String, String)>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            gateways: 1,
            agents: 3,
            store: None,
            config: None,
            host: Ipv4Addr::LOCALHOST.into(),
            gateway_env: Vec::new(),
        }
    }
}

/// A running fleet. Agents are dropped first, so that they can deregister from a gateway.
#[derive(Debug)]
pub struct Fleet {
    /// The agents, in the order of their start.
    pub agents: Vec<Agent>,
    /// The builder.
    pub builder: Program,
    /// The gateways, in the order of their start.
    pub gateways: Vec<Gateway>,
    plan: Plan,
}

/// One gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Its process.
    pub program: Program,
    public: SocketAddr,
    control: SocketAddr,
    key: String,
}

/// One agent.
#[derive(Debug)]
pub struct Agent {
    /// Its process.
    pub program: Program,
    id: String,
}

impl Fleet {
    /// Starts all programs and waits until each gateway sees each agent.
    pub async fn start(plan: Plan) -> Self {
        let mut gateways = Vec::new();
        for _ in 0..plan.gateways {
            gateways.push(Gateway::start(&plan).await);
        }
        let builder = Program::start(Launch {
            binary: "epsilon-builder",
            arguments: joining(&gateways, "builder.token"),
            config: plan.config.clone(),
            ..Launch::default()
        })
        .await;
        let mut fleet = Self { agents: Vec::new(), builder, gateways, plan };
        for _ in 0..fleet.plan.agents {
            fleet.add_agent().await;
        }
        fleet.all_ready().await;
        fleet
    }

    /// Starts one more agent.
    pub async fn add_agent(&mut self) -> &mut Agent {
        self.add_agent_with(|_| {}).await
    }

    /// Starts one more agent with changed settings.
    pub async fn add_agent_with(&mut self, change: impl FnOnce(&mut Launch)) -> &mut Agent {
        let mut launch = Launch {
            binary: "epsilon-vm-agent",
            arguments: joining(&self.gateways, "fleet.token"),
            config: self.plan.config.clone(),
            ..Launch::default()
        };
        change(&mut launch);
        let program = Program::start(launch).await;
        let id = program.data_file("vm/id");
        self.agents.push(Agent { program, id });
        self.agents.last_mut().expect("it was just pushed")
    }

    /// Waits until each gateway has each agent as a VM that accepts calls.
    pub async fn all_ready(&self) {
        for gateway in &self.gateways {
            for agent in &self.agents {
                gateway.sees(&agent.id, "ready").await;
            }
        }
    }

    /// Deploys through the first gateway; must succeed.
    pub async fn deploy(&self, project: &Project) -> Deployment {
        let deployment = self.try_deploy(0, project).await;
        deployment.done();
        deployment
    }

    /// Deploys through one of the gateways, whatever the result.
    pub async fn try_deploy(&self, gateway: usize, project: &Project) -> Deployment {
        let Gateway { control, key, .. } = &self.gateways[gateway];
        let query = format!("folder={}", project.name());
        deploy::send(*control, key, &query, project.archive()).await
    }

    /// The agent with this id.
    ///
    /// # Panics
    /// When it does not exist.
    pub fn agent(&mut self, id: &str) -> &mut Agent {
        self.agents.iter_mut().find(|agent| agent.id == id).expect("an agent of this id")
    }
}

fn joining(gateways: &[Gateway], token: &str) -> Vec<String> {
    let urls: Vec<_> =
        gateways.iter().map(|gateway| format!("http://{}", gateway.control)).collect();
    let token = gateways[0].program.data().join(token);
    let token = token.to_str().expect("a path of text");
    ["--gateway", &urls.join(","), "--token-file", token, "--listen", "127.0.0.1:0"]
        .map(str::to_owned)
        .to_vec()
}

impl Gateway {
    async fn start(plan: &Plan) -> Self {
        let any = SocketAddr::new(plan.host, 0);
        let mut arguments = arguments(any, any);
        if let Some(store) = &plan.store {
            arguments.extend(["--store".to_owned(), store.clone()]);
        }
        let program = Program::start(Launch {
            binary: "epsilon-gateway",
            arguments,
            config: plan.config.clone(),
            env: plan.gateway_env.clone(),
            ..Launch::default()
        })
        .await;
        let key = program.data_file("admin.key");
        let [public, control, ..] = program.addresses()[..] else {
            panic!("no two addresses in `{}`", program.ready())
        };
        Self { program, public, control, key }
    }

    /// Starts it again on the same data and ports.
    pub async fn start_again(&mut self) {
        let launch = self.program.launch();
        launch.arguments.splice(..4, arguments(self.public, self.control));
        self.program.start_again().await;
    }

    /// Address for calls of functions.
    pub fn public(&self) -> SocketAddr {
        self.public
    }

    /// Address of the control API.
    pub fn control(&self) -> SocketAddr {
        self.control
    }

    /// The admin key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Calls a function by `GET`.
    pub async fn get(&self, target: &str) -> Answer {
        Call::get(target).send(self.public).await
    }

    /// Calls the control API with the admin key.
    pub async fn send_admin(&self, call: Call) -> Answer {
        call.header("authorization", &format!("Bearer {}", self.key)).send(self.control).await
    }

    /// `GET` on the control API: the answer's `data`.
    ///
    /// # Panics
    /// When the answer is not 200.
    pub async fn admin(&self, target: &str) -> Value {
        self.send_admin(Call::get(target)).await.expect(200).json()["data"].clone()
    }

    /// The gateway's view of one VM; `None` when it does not know it.
    pub async fn vm(&self, id: &str) -> Option<Value> {
        let vms = self.admin("/v1/vms").await;
        vms.as_array().expect("a list").iter().find(|vm| vm["id"] == id).cloned()
    }

    /// The VM that runs the test's one call.
    ///
    /// # Errors
    /// All VMs, when no VM runs a call.
    pub async fn busy_vm(&self) -> Result<String, Value> {
        let vms = self.admin("/v1/vms").await;
        let busy = vms.as_array().expect("a list").iter().find(|vm| vm["calls_active"] == 1);
        busy.and_then(|vm| vm["id"].as_str()).map(str::to_owned).ok_or_else(|| vms.clone())
    }

    /// Waits until this gateway sees the VM in this state.
    pub async fn sees(&self, id: &str, standing: &str) {
        until(&format!("VM {id} is {standing}"), SOON, async || match self.vm(id).await {
            Some(vm) if vm["standing"] == standing => Ok(()),
            other => Err(other.map(|vm| vm["standing"].clone())),
        })
        .await;
    }
}

fn arguments(public: SocketAddr, control: SocketAddr) -> Vec<String> {
    let (public, control) = (public.to_string(), control.to_string());
    ["--listen", &public, "--control", &control].map(str::to_owned).to_vec()
}

impl Agent {
    /// The VM's id.
    pub fn id(&self) -> &str {
        &self.id
    }
}
