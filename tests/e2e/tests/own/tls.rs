//! Follows docs/tls.md exactly: its settings, and its fenced blocks marked `sh run` in order, from
//! another network namespace than the gateway's. A block that fails fails this test.

use epsilon_e2e::{
    cli::run,
    network::Network,
    program::{Launch, Program, binary},
    wait::{SOON, until},
};
use std::{fmt::Write as _, path::Path, process::Stdio};
use tempfile::TempDir;
use tokio::process::Command;

/// Namespaces: the VM's, and that of a person at another machine.
const VM: u8 = 0;
const PERSON: u8 = 1;

/// The blocks with this info string, each with the number of its first line.
fn blocks(text: &str, info: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        match line.trim_end().strip_prefix("```") {
            Some(mark) => {
                inside = mark == info;
                if inside {
                    found.push((number + 2, String::new()));
                }
            }
            None if inside => {
                writeln!(found.last_mut().unwrap().1, "{line}").unwrap();
            }
            None => {}
        }
    }
    found
}

/// The page and the folder where its commands run.
struct Reader {
    page: String,
    place: TempDir,
    network: Network,
}

impl Reader {
    fn new() -> Self {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tls.md");
        let page = std::fs::read_to_string(page).unwrap();
        Self { page, place: TempDir::new().unwrap(), network: Network::start(2) }
    }

    /// The page's settings for a part, for this machine: the files are named by its address.
    fn settings(&self, part: &str, machine: &str, gateway: &str) -> String {
        let mut found = blocks(&self.page, &format!("yaml {part}"));
        let (_, settings) = found.pop().unwrap_or_else(|| panic!("no settings of {part}"));
        let place = self.place.path().display();
        settings
            .replace("/etc/epsilon/own", &format!("{place}/{machine}"))
            .replace("/etc/epsilon/", &format!("{place}/"))
            .replace("10.0.0.5:8081", gateway)
    }

    /// Runs a block as a person at another machine.
    async fn run(&self, (line, block): &(usize, String), control: &str) {
        let path = binary("epsilon").parent().unwrap().display().to_string();
        let path = format!("{path}:{}", std::env::var("PATH").unwrap_or_default());
        let machines = [self.network.host(), self.network.address(VM)];
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.network.netns(PERSON)])
            .args(["bash", "-euo", "pipefail", "-c", block])
            .current_dir(self.place.path())
            // This machine's settings for git and curl would override the page's.
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.place.path())
            .env("machines", machines.map(|ip| ip.to_string()).join(" "))
            .env("control", control)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .stdin(Stdio::null());
        let outcome = run(command).await;
        assert_eq!(outcome.code, 0, "docs/tls.md:{line}:\n{block}\n{outcome}");
    }
}

#[tokio::test]
async fn the_page_works_from_another_network_namespace() {
    let reader = Reader::new();
    let all = blocks(&reader.page, "sh run");
    let (certificates, others) = all.split_first().expect("blocks marked `sh run`");
    reader.run(certificates, "").await;
    let (host, vm) = (reader.network.host().to_string(), reader.network.address(VM).to_string());
    std::fs::write(reader.place.path().join("shop.secret"), "a secret of some length").unwrap();

    let place = reader.place.path().display();
    let hook = format!(
        "  github: {{ shop: {{ repository: octo/shop, secret_file: {place}/shop.secret }} }}\n"
    );
    let gateway = Program::start(Launch {
        binary: "epsilon-gateway",
        arguments: vec!["--listen".into(), format!("{host}:0")],
        config: Some(reader.settings("gateway", &host, &format!("{host}:0")) + &hook),
        ..Launch::default()
    })
    .await;
    let control = gateway.addresses()[1];
    assert!(gateway.ready().contains(&format!("control https://{control}")), "{}", gateway.ready());
    std::fs::write(reader.place.path().join("admin.key"), gateway.data_file("admin.key")).unwrap();
    let token = |file: &str| gateway.data().join(file).display().to_string();

    // Its firewall is that of its namespace, while the engine's bridges are the machine's.
    let away = "  dangerous_allow_metadata: true\n";
    let member = |binary, part, token: String, address: &str| Launch {
        binary,
        arguments: ["--token-file", &token, "--listen", &format!("{address}:0")]
            .map(str::to_owned)
            .to_vec(),
        config: Some(reader.settings(part, address, &control.to_string())),
        ..Launch::default()
    };
    let mut agent = member("epsilon-vm-agent", "vm", token("fleet.token"), &vm);
    agent.netns = Some(reader.network.netns(VM));
    agent.config = agent.config.map(|settings| settings + away);
    let _agent = Program::start(agent).await;
    let builder = member("epsilon-builder", "builder", token("builder.token"), &host);
    let _builder = Program::start(builder).await;
    until("both have joined", SOON, async || {
        let log = gateway.log();
        match log.matches("Member was registered in the store.").count() {
            2 => Ok(()),
            _ => Err(log),
        }
    })
    .await;

    for block in others {
        reader.run(block, &format!("https://{control}")).await;
    }
    let until_when = "epsilon --gateway $control --ca authority.pem --key $(cat admin.key) vms --json \
                      | grep '\"certificate_ends_at\": *\"20'\n";
    reader.run(&(0, until_when.to_owned()), &format!("https://{control}")).await;
    // What the first deployment and the push made is there; nothing of it went in plain HTTP.
    let plain =
        (0, format!("curl --silent --show-error http://{control}/healthz | grep TLS_REQUIRED\n"));
    reader.run(&plain, "").await;
}

#[test]
fn blocks_are_found_by_their_mark() {
    let text = "a\n```sh\nno\n```\n```sh run\none\ntwo\n```\n```yaml vm\nx: 1\n```\n";
    assert_eq!(blocks(text, "sh run"), [(6, "one\ntwo\n".to_owned())]);
    assert_eq!(blocks(text, "yaml vm"), [(10, "x: 1\n".to_owned())]);
}
