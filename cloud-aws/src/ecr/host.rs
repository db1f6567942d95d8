//! The names of ECR's private registries. Strict: a token is only ever sent to a host that AWS
//! owns.

use std::fmt;

/// The host of a private registry: `ACCOUNT.dkr.ecr.REGION.amazonaws.com`, `….com.cn` in China,
/// `dkr.ecr-fips`, or the dual-stack form `ACCOUNT.dkr-ecr.REGION.on.aws`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EcrHost {
    name: String,
    account: String,
    region: String,
}

impl EcrHost {
    /// Parses a host; `None` when it is not one of ECR's.
    pub fn parse(host: &str) -> Option<Self> {
        let (account, rest) = host.split_once('.')?;
        let region = [
            (".amazonaws.com", ["dkr.ecr.", "dkr.ecr-fips."]),
            (".amazonaws.com.cn", ["dkr.ecr.", "dkr.ecr-fips."]),
            (".on.aws", ["dkr-ecr.", "dkr-ecr-fips."]),
        ]
        .into_iter()
        .filter_map(|(end, services)| Some((rest.strip_suffix(end)?, services)))
        .find_map(|(rest, services)| services.iter().find_map(|name| rest.strip_prefix(name)))?;
        let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let is_region = !region.is_empty()
            && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (is_account && is_region).then(|| Self::new(host, account, region))
    }

    /// Another host that is treated as ECR: a fake in a test.
    pub fn new(name: &str, account: &str, region: &str) -> Self {
        Self { name: name.to_owned(), account: account.to_owned(), region: region.to_owned() }
    }

    /// The AWS account that the registry belongs to.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The AWS region of the registry.
    pub fn region(&self) -> &str {
        &self.region
    }
}

impl fmt::Display for EcrHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::EcrHost;

    #[test]
    fn ecr_is_known_by_its_name() {
        for (host, region) in [
            ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "eu-central-1"),
            ("123456789012.dkr.ecr.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
            ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "us-east-1"),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1"),
        ] {
            let found = EcrHost::parse(host).unwrap();
            assert_eq!((found.account(), found.region()), ("123456789012", region));
            assert_eq!(found.to_string(), host);
        }
    }

    #[test]
    fn other_hosts_get_no_token() {
        for host in [
            "registry.example",
            "public.ecr.aws",
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com.evil.example",
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com:443",
            "123456789012.dkr.ecr.evil.example/.amazonaws.com",
            "123456789012.dkr.ecr.a.b.amazonaws.com",
            "123456789012.dkr.ecr..amazonaws.com",
            "12345678901.dkr.ecr.eu-central-1.amazonaws.com",
            "12345678901x.dkr.ecr.eu-central-1.amazonaws.com",
            "dkr.ecr.eu-central-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-central-1amazonaws.com",
            "123456789012.s3.eu-central-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.on.aws",
            "",
        ] {
            assert_eq!(EcrHost::parse(host), None, "{host}");
        }
    }
}
