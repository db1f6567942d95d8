//! Networks as an operator lists them: CIDRs and single addresses. Only a list; its users decide
//! what it means. Used for `gateway.trusted_proxies`, by calls and by connection limits.

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::net::IpAddr;

/// A list of networks; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether an address is in one of them. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Parses one network or one address.
    fn parse(text: &str) -> Option<IpNet> {
        text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?)))
    }
}

impl<'de> Deserialize<'de> for Networks {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let networks = texts.iter().map(|text| {
            Self::parse(text).ok_or_else(|| {
                D::Error::custom(format!(
                    "`{text}` is not a network; write for example `10.0.0.0/16` or `192.0.2.7`"
                ))
            })
        });
        networks.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_and_matched() {
        let networks: Networks =
            serde_json::from_str(r#"["10.1.0.0/16","192.0.2.7","fd00::/8"]"#).unwrap();
        for (address, inside) in [
            ("10.1.255.1", true),
            ("10.2.0.1", false),
            ("::ffff:10.1.2.3", true),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("fd12::1", true),
            ("fe80::1", false),
        ] {
            assert_eq!(networks.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(Networks::default().is_empty());
        let refused = serde_json::from_str::<Networks>(r#"["10.1.0.0/33"]"#).unwrap_err();
        assert!(refused.to_string().contains("`10.1.0.0/33`"), "{refused}");
    }
}
