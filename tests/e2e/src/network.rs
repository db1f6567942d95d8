//! A network of virtual machines on this one: namespaces, each with one link to a bridge that this
//! process reaches, so that a test can cut, slow and restore them. Removed with the value, and also
//! when the test's process ends in any other way. Needs root.

use crate::guard::Guard;
use std::{
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// `$1`: prefix of all names; `$2`: number of namespaces.
const GUARD: &str = r#"
cat >/dev/null
for number in $(seq 0 $(($2 - 1))); do
  ip link del "$1v$number"
  ip netns del "$1n$number"
done
ip link del "$1"
"#;

/// A bridge and its namespaces.
#[derive(Debug)]
pub struct Network {
    name: String,
    subnet: [u8; 3],
    _guard: Guard,
}

impl Network {
    /// Creates namespaces, each linked to the bridge.
    ///
    /// # Panics
    /// When the machine does not allow it.
    pub fn start(namespaces: u8) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Unique per network of a process; at most 15 characters with what follows.
        let letter = char::from(b'a' + (count % 26) as u8);
        let name = format!("e2e{pid}{letter}");
        // Far from those of the processes that start just before and after.
        let [low, middle, ..] = pid.wrapping_add(count.wrapping_mul(0x1357)).to_le_bytes();
        let subnet = [10, 128 | middle, low];
        let guard = Guard::new(GUARD, [&name, &namespaces.to_string()]);
        let network = Self { name, subnet, _guard: guard };
        let bridge = &network.name;
        run(&format!("ip link add {bridge} type bridge"));
        run(&format!("ip addr add {}/24 dev {bridge}", network.host()));
        run(&format!("ip link set {bridge} up"));
        for number in 0..namespaces {
            let (netns, link) = (network.netns(number), network.link(number));
            run(&format!("ip netns add {netns}"));
            run(&format!("ip link add {link} type veth peer name eth0 netns {netns}"));
            run(&format!("ip link set {link} master {bridge} up"));
            run(&format!("ip -n {netns} addr add {}/24 dev eth0", network.address(number)));
            run(&format!("ip -n {netns} link set eth0 up"));
            run(&format!("ip -n {netns} link set lo up"));
        }
        network
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.name
    }

    /// This process's address in the network.
    pub fn host(&self) -> IpAddr {
        self.at(1)
    }

    /// The address of a namespace.
    pub fn address(&self, number: u8) -> IpAddr {
        self.at(10 + number)
    }

    /// The name of a namespace, for [`crate::program::Launch::netns`].
    pub fn netns(&self, number: u8) -> String {
        format!("{}n{number}", self.name)
    }

    /// Drops all packets to and from this namespace.
    pub fn cut(&self, number: u8) {
        run(&format!("ip link set {} down", self.link(number)));
    }

    /// Limits the traffic to this namespace to so many kbit/s. (A plain delay would need `netem`,
    /// which many kernels lack.)
    pub fn slow(&self, number: u8, kbit: u32) {
        let link = self.link(number);
        run(&format!("tc qdisc add dev {link} root tbf rate {kbit}kbit burst 2kb latency 400ms"));
    }

    /// Undoes [`Self::cut`].
    pub fn join(&self, number: u8) {
        run(&format!("ip link set {} up", self.link(number)));
    }

    /// Undoes [`Self::slow`].
    pub fn remove_limit(&self, number: u8) {
        run(&format!("tc qdisc del dev {} root", self.link(number)));
    }

    fn link(&self, number: u8) -> String {
        format!("{}v{number}", self.name)
    }

    fn at(&self, last: u8) -> IpAddr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last).into()
    }
}

/// Runs a command of words without spaces.
fn run(line: &str) {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().expect("split gives one"));
    let done = command.args(words).stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|err| panic!("`{line}`: {err}"));
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "`{line}`: {}: {stderr} (run this as root)", done.status);
}
