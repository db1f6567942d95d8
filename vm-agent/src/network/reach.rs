//! Which of the surrounding networks functions can reach: the operator's settings, and this
//! machine's own networks and resolvers. It decides nothing about packets; the engine derives rules
//! from it.

use crate::config::invalid::ConfigError;
use crate::engine::Firewall;
use std::{fmt, fs, net::Ipv4Addr};

/// The kernel's routes: `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, addresses in
/// this machine's byte order.
const ROUTES: &str = "/proc/net/route";
/// Files with this machine's resolvers. An engine takes the second where the first has only
/// loopback addresses.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Limit of parts of one setting. Each is a rule that packets pass.
const PARTS_MAX: usize = 64;

/// An IPv4 network. Functions have no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ipv4Network {
    address: Ipv4Addr,
    bits: u8,
}

/// An address, or a network, that functions reach although it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenAddress {
    /// The address or network.
    pub network: Ipv4Network,
    /// Only this port, of TCP and UDP.
    pub port: Option<u16>,
}

/// The settings `closed_networks` and `open_addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Whether the networks that this VM is in are closed.
    own: bool,
    closed: Vec<Ipv4Network>,
    open: Vec<OpenAddress>,
}

impl Ipv4Network {
    fn new(address: Ipv4Addr, bits: u8) -> Option<Self> {
        let zeros = 32u32.checked_sub(bits.into())?;
        let mask = u32::MAX.checked_shl(zeros).unwrap_or(0);
        Some(Self { address: Ipv4Addr::from_bits(address.to_bits() & mask), bits })
    }

    /// Parses `10.0.0.0/8`, or an address alone.
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        Self::new(address.parse().ok()?, bits.parse().ok()?)
    }
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl OpenAddress {
    fn parse(text: &str) -> Option<Self> {
        let (network, port) = match text.split_once(':') {
            Some((network, port)) => (network, Some(port.parse().ok().filter(|port| *port > 0)?)),
            None => (text, None),
        };
        Some(Self { network: Ipv4Network::parse(network)?, port })
    }
}

impl Reach {
    /// Parses the two settings.
    ///
    /// # Errors
    /// The first part that cannot be parsed.
    pub(crate) fn read(closed: &str, open: &str) -> Result<Self, ConfigError> {
        let mut reach = Self { own: false, closed: Vec::new(), open: Vec::new() };
        for part in parts("closed_networks", closed)? {
            match part {
                "own" => reach.own = true,
                "none" => {}
                text => reach.closed.push(Ipv4Network::parse(text).ok_or_else(|| {
                    bad(
                        "closed_networks",
                        text,
                        "is not an IPv4 network like `10.0.0.0/8`, and neither `own` nor `none`",
                    )
                })?),
            }
        }
        for text in parts("open_addresses", open)? {
            reach.open.push(OpenAddress::parse(text).ok_or_else(|| bad(
                "open_addresses",
                text,
                "is not an IPv4 address with a port, like `192.168.1.10:5432`; a name is not looked up",
            ))?);
        }
        Ok(reach)
    }

    /// The rules for a bridge, with this machine's current networks.
    pub(crate) fn firewall(&self, bridge: &str) -> Firewall {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let mut closed = self.closed.clone();
        if self.own {
            closed.extend(networks(&read(ROUTES)));
        }
        closed.sort_unstable();
        closed.dedup();
        let mut resolvers: Vec<_> =
            RESOLVERS.into_iter().flat_map(|at| servers(&read(at))).collect();
        resolvers.sort_unstable();
        resolvers.dedup();
        Firewall { bridge: bridge.to_owned(), resolvers, open: self.open.clone(), closed }
    }
}

fn parts<'a>(key: &'static str, text: &'a str) -> Result<Vec<&'a str>, ConfigError> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.len() > PARTS_MAX {
        return Err(bad(key, text, "has more than 64 parts: write larger networks"));
    }
    Ok(parts)
}

fn bad(key: &'static str, text: &str, rule: &'static str) -> ConfigError {
    ConfigError::Reach { key, text: text.to_owned(), rule }
}

/// The networks that are reached without a gateway.
fn networks(routes: &str) -> Vec<Ipv4Network> {
    let network = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let (destination, gateway, mask) = (number(1)?, number(2)?, number(7)?);
        let address = Ipv4Addr::from(destination.to_ne_bytes());
        let bits = mask.count_ones() as u8;
        let is_near = gateway == 0 && bits > 0 && !address.is_link_local();
        Ipv4Network::new(address, bits).filter(|_| is_near)
    };
    routes.lines().skip(1).filter_map(network).collect()
}

/// Resolvers that a container can ask directly. The engine forwards to one on this machine's
/// loopback.
fn servers(text: &str) -> Vec<Ipv4Addr> {
    let server = |line: &str| -> Option<Ipv4Addr> {
        line.trim().strip_prefix("nameserver")?.trim().parse().ok()
    };
    text.lines().filter_map(server).filter(|address| !address.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let reach = Reach::read("own", "").unwrap();
        assert_eq!(reach, Reach { own: true, closed: Vec::new(), open: Vec::new() });
        let reach = Reach::read("own, 10.1.2.3/8", "192.168.1.10:5432,10.0.0.0/24").unwrap();
        let text: Vec<_> = reach.closed.iter().map(ToString::to_string).collect();
        assert_eq!((reach.own, text), (true, vec!["10.0.0.0/8".to_owned()]));
        let open: Vec<_> =
            reach.open.iter().map(|open| (open.network.to_string(), open.port)).collect();
        let want = [("192.168.1.10/32", Some(5432)), ("10.0.0.0/24", None)];
        assert_eq!(open, want.map(|(network, port)| (network.to_owned(), port)));
        assert!(!Reach::read("none", "").unwrap().own);
    }

    #[test]
    fn invalid_networks_are_refused() {
        for bad in ["10.0.0.0/33", "10.0.0", "fd00::/8", "all", "10.0.0.0/8/8", "10.0.0.0/-1"] {
            assert!(Reach::read(bad, "").is_err(), "{bad}");
        }
        for bad in ["db:5432", "10.0.0.1:0", "10.0.0.1:70000", "10.0.0.1:", "[::1]:80", "own"] {
            assert!(Reach::read("own", bad).is_err(), "{bad}");
        }
        assert!(Reach::read(&"10.0.0.1,".repeat(65), "").is_err());
    }

    #[test]
    fn the_kernels_routes_say_which_networks_are_near() {
        let routes = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t0000FEA9\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
tun0\t0000000A\t010200C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0
torn";
        let near: Vec<_> = networks(routes).iter().map(ToString::to_string).collect();
        assert_eq!(near, ["172.17.0.0/16", "192.0.2.0/24"]);
    }

    #[test]
    fn resolvers_are_those_that_a_container_asks_by_itself() {
        let text = "# nameserver 1.1.1.1\nnameserver 127.0.0.53\n nameserver 10.0.0.2 \nnameserver fd00::1\nsearch x\n";
        assert_eq!(servers(text), [Ipv4Addr::new(10, 0, 0, 2)]);
    }
}
