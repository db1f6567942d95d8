//! The iptables rules that keep functions from the machine that they run on, from its networks, and
//! from the cloud's metadata service, which has the VM's own credentials. Three chains for each
//! bridge, filled in one transaction:
//!
//! ```text
//! INPUT        -i BRIDGE ─▶ BRIDGE-in    packets for this machine: only answers, DNS and exceptions
//! DOCKER-USER  -i BRIDGE ─▶ BRIDGE-out   packets that Docker's bridges forward: not into closed networks
//! DOCKER-USER  -o BRIDGE ─▶ BRIDGE-back  answers of exceptions, past Docker's isolation of its bridges
//! ```
//!
//! Chains and rules outlive the agent; the next one on the same directory has the same bridge,
//! fills them again, and removes them at its shutdown. Needs root and iptables.

use crate::engine::{EngineError, Firewall, OpenAddress};
use std::{process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

const METADATA: &str = "169.254.169.254/32";
/// Chains of the bridge, and the rules in the engine's and the kernel's chains that jump to them.
const CHAINS: [(&str, &str, &str); 3] =
    [("in", "INPUT", "-i"), ("out", "DOCKER-USER", "-i"), ("back", "DOCKER-USER", "-o")];
/// Seconds that iptables may wait for its lock.
const LOCK_WAIT: &str = "5";
const TIMEOUT: Duration = Duration::from_secs(10);

/// Rejected where the kernel can, else dropped.
const TARGETS: [&str; 2] = ["REJECT", "DROP"];

/// Packets of established connections.
const KNOWN: &str = "--ctstate RELATED,ESTABLISHED";

pub(super) async fn ensure(firewall: &Firewall) -> Result<(), EngineError> {
    let mut filled = Ok(());
    for target in TARGETS {
        filled = run("iptables-restore", &["-w", LOCK_WAIT, "--noflush"], &rules(firewall, target))
            .await;
        if filled.is_ok() {
            break;
        }
    }
    filled.map_err(EngineError::Refused)?;
    for (end, from, direction) in CHAINS {
        let chain = format!("{}-{end}", firewall.bridge);
        let rule = [from, direction, &firewall.bridge, "-j", &chain];
        if iptables("-C", &rule).await.is_err() {
            iptables("-I", &rule).await.map_err(EngineError::Refused)?;
        }
    }
    Ok(())
}

pub(super) async fn remove(bridge: &str) -> Result<(), EngineError> {
    for (end, from, direction) in CHAINS {
        let chain = format!("{bridge}-{end}");
        delete_rule(&[from, direction, bridge, "-j", &chain]).await?;
        // A missing chain cannot be flushed.
        if iptables("-F", &[&chain]).await.is_ok() {
            iptables("-X", &[&chain]).await.map_err(EngineError::Refused)?;
        }
    }
    // Rules of an earlier release.
    for (_, from, direction) in &CHAINS[..2] {
        for target in TARGETS {
            delete_rule(&[from, direction, bridge, "-d", METADATA, "-j", target]).await?;
        }
    }
    Ok(())
}

async fn delete_rule(rule: &[&str]) -> Result<(), EngineError> {
    while iptables("-C", rule).await.is_ok() {
        iptables("-D", rule).await.map_err(EngineError::Refused)?;
    }
    Ok(())
}

/// All three chains as input of `iptables-restore`, which flushes and fills them in one step.
fn rules(firewall: &Firewall, refuse: &str) -> String {
    let bridge = &firewall.bridge;
    let mut lines = vec!["*filter".to_owned()];
    lines.extend(CHAINS.map(|(end, ..)| format!(":{bridge}-{end} - [0:0]")));
    let mut add = |end: &str, rule: String| lines.push(format!("-A {bridge}-{end} {rule}"));
    for end in ["in", "out"] {
        add(end, format!("-m conntrack {KNOWN} -j RETURN"));
        add(end, format!("-d {METADATA} -j {refuse}"));
        for resolver in &firewall.resolvers {
            for protocol in ["udp", "tcp"] {
                add(end, format!("-d {resolver}/32 -p {protocol} --dport 53 -j RETURN"));
            }
        }
    }
    for conntrack_matches in firewall.open.iter().flat_map(conntrack_matches) {
        // The machine's own firewall still applies; Docker's isolation between bridges does not.
        add("in", format!("-m conntrack {conntrack_matches} -j RETURN"));
        add("out", format!("-m conntrack {conntrack_matches} -j ACCEPT"));
        add("back", format!("-m conntrack {KNOWN} {conntrack_matches} -j ACCEPT"));
    }
    add("in", format!("-j {refuse}"));
    for network in &firewall.closed {
        add("out", format!("-d {network} -j {refuse}"));
    }
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

/// Matches the address that the function connected to: a port that Docker publishes is translated
/// to another one.
fn conntrack_matches(open: &OpenAddress) -> Vec<String> {
    let network = open.network;
    let Some(port) = open.port else { return vec![format!("--ctorigdst {network}")] };
    let of =
        |protocol| format!("--ctproto {protocol} --ctorigdst {network} --ctorigdstport {port}");
    ["tcp", "udp"].map(of).into()
}

async fn iptables(action: &str, rule: &[&str]) -> Result<(), String> {
    run("iptables", &[&["-w", LOCK_WAIT, action], rule].concat(), "").await
}

async fn run(program: &str, arguments: &[&str], input: &str) -> Result<(), String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let work = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read it reports why in its status.
            drop(stdin.write_all(input.as_bytes()).await);
        }
        child.wait_with_output().await
    };
    match timeout(TIMEOUT, work).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Ok(Err(err)) => Err(format!("{program}: {err}")),
        Err(_) => Err(format!("{program} took longer than {TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::reach::Reach;

    #[test]
    fn exceptions_come_after_metadata_and_before_closed_networks() {
        let reach = Reach::read("10.0.0.0/8", "10.0.0.5:5432,10.9.0.0/16").unwrap();
        let mut firewall = reach.firewall("eps0");
        firewall.resolvers = vec!["10.0.0.2".parse().unwrap()];
        let want = "\
*filter
:eps0-in - [0:0]
:eps0-out - [0:0]
:eps0-back - [0:0]
-A eps0-in -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A eps0-in -d 169.254.169.254/32 -j DROP
-A eps0-in -d 10.0.0.2/32 -p udp --dport 53 -j RETURN
-A eps0-in -d 10.0.0.2/32 -p tcp --dport 53 -j RETURN
-A eps0-out -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A eps0-out -d 169.254.169.254/32 -j DROP
-A eps0-out -d 10.0.0.2/32 -p udp --dport 53 -j RETURN
-A eps0-out -d 10.0.0.2/32 -p tcp --dport 53 -j RETURN
-A eps0-in -m conntrack --ctproto tcp --ctorigdst 10.0.0.5/32 --ctorigdstport 5432 -j RETURN
-A eps0-out -m conntrack --ctproto tcp --ctorigdst 10.0.0.5/32 --ctorigdstport 5432 -j ACCEPT
-A eps0-back -m conntrack --ctstate RELATED,ESTABLISHED --ctproto tcp --ctorigdst 10.0.0.5/32 --ctorigdstport 5432 -j ACCEPT
-A eps0-in -m conntrack --ctproto udp --ctorigdst 10.0.0.5/32 --ctorigdstport 5432 -j RETURN
-A eps0-out -m conntrack --ctproto udp --ctorigdst 10.0.0.5/32 --ctorigdstport 5432 -j ACCEPT
-A eps0-back -m conntrack --ctstate RELATED,ESTABLISHED --ctproto udp --ctorigdst 10.0.0.5/32 --ctorigdstport 5432 -j ACCEPT
-A eps0-in -m conntrack --ctorigdst 10.9.0.0/16 -j RETURN
-A eps0-out -m conntrack --ctorigdst 10.9.0.0/16 -j ACCEPT
-A eps0-back -m conntrack --ctstate RELATED,ESTABLISHED --ctorigdst 10.9.0.0/16 -j ACCEPT
-A eps0-in -j DROP
-A eps0-out -d 10.0.0.0/8 -j DROP
COMMIT
";
        assert_eq!(rules(&firewall, "DROP"), want);
    }
}
