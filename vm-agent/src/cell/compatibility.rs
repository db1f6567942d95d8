//! Kinds of cells, and which versions fit one. Pure; used for each start, and for each version that
//! is seen.
//!
//! A cell is booted before it is known which version it will serve, so all that is fixed when its
//! process starts is part of its kind: the runtime base, the network, and the memory by which the
//! runtime sizes its heap.

use epsilon_api::{
    function::{FunctionSpec, ImageRef, Network, Runtime, Version},
    units::Bytes,
};
use std::fmt;

/// Memory sizes of cells. A function whose memory is between two sizes gets a cell of the lower
/// one, whose limit is raised while its code loads; the runtime's heap stays as it was sized, a
/// little smaller than it could be.
const MEMORY_SIZES_MIB: [u64; 16] =
    [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384];

/// What cells have in common that can replace each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// The runtime base.
    pub(crate) base: ImageRef,
    pub(crate) network: Network,
    /// One of [`MEMORY_SIZES_MIB`].
    pub(crate) memory: Bytes,
}

/// Why a version cannot be served by a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It is not Node and brings its own server.
    Runtime,
    /// The version does not name the layers of its image.
    NoParts,
    /// This variable only takes effect when the process starts.
    Env(String),
    /// Less memory than the smallest cell has.
    TooSmall,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime => f.write_str("its runtime is not `node`"),
            Self::NoParts => f.write_str("the layers of its image are not known"),
            Self::Env(name) => write!(f, "`{name}` takes effect only when a process starts"),
            Self::TooSmall => write!(f, "its memory is less than {} MiB", MEMORY_SIZES_MIB[0]),
        }
    }
}

impl Kind {
    /// The kind of cell that a version fits.
    ///
    /// # Errors
    /// Why it fits none: its instances are started from its image.
    pub(crate) fn of(version: &Version) -> Result<Self, Unfit> {
        let spec = &version.spec;
        if spec.runtime != Runtime::Node {
            return Err(Unfit::Runtime);
        }
        let parts = version.parts.as_ref().ok_or(Unfit::NoParts)?;
        if let Some(name) = early_variable(spec) {
            return Err(Unfit::Env(name.to_owned()));
        }
        let memory = memory_size(spec.memory).ok_or(Unfit::TooSmall)?;
        Ok(Self { base: parts.base.clone(), network: spec.network, memory })
    }

    /// The kind that most functions fit: those with default memory and network.
    pub(crate) fn usual(base: ImageRef) -> Self {
        let usual = FunctionSpec::new(Runtime::Node, "", "");
        let memory = memory_size(usual.memory).unwrap_or(usual.memory);
        Self { base, network: usual.network, memory }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = match self.network {
            Network::Egress => "egress",
            Network::None => "none",
        };
        write!(f, "{} {network} {}", self.base, self.memory)
    }
}

/// The largest size within `memory`.
fn memory_size(memory: Bytes) -> Option<Bytes> {
    MEMORY_SIZES_MIB.into_iter().map(Bytes::mib).rfind(|size| *size <= memory)
}

/// The name of a variable that Node, V8, libuv, OpenSSL, ICU or the C library reads only when the
/// process starts, if there is one. The wrapper sets all others when it loads the code.
fn early_variable(spec: &FunctionSpec) -> Option<&str> {
    /// Of Node's own variables, these are read when they are needed.
    const LATE: [&str; 2] = ["NODE_ENV", "NODE_TLS_REJECT_UNAUTHORIZED"];
    const PREFIXES: [&str; 9] =
        ["NODE_", "UV_", "LD_", "SSL_CERT_", "OPENSSL_", "ICU_", "MALLOC_", "GLIBC_", "LC_"];
    const NAMES: [&str; 2] = ["LANG", "LANGUAGE"];
    let is_early = |name: &str| {
        let by_prefix = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        (by_prefix && !LATE.contains(&name)) || NAMES.contains(&name)
    };
    spec.env.keys().map(String::as_str).find(|name| is_early(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use epsilon_api::{
        function::Parts,
        ids::{DeploymentId, FunctionName, ProjectName, VersionNumber},
    };

    fn base() -> ImageRef {
        ImageRef { reference: "base:1".into(), digest: "sha256:00".into() }
    }

    fn version(change: impl FnOnce(&mut Version)) -> Version {
        let mut version = Version {
            function: FunctionName::parse("hello").unwrap(),
            number: VersionNumber::FIRST,
            project: ProjectName::parse("test").unwrap(),
            deployment: DeploymentId::random(),
            image: ImageRef { reference: "hello:1".into(), digest: "sha256:01".into() },
            parts: Some(Parts { base: base(), layers: Vec::new() }),
            spec: FunctionSpec::new(Runtime::Node, "index.js", "hello"),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        change(&mut version);
        version
    }

    fn env(name: &str) -> Result<Kind, Unfit> {
        Kind::of(&version(|v| drop(v.spec.env.insert(name.into(), "1".into()))))
    }

    macro_rules! fits {
        ($($name:ident: $version:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                assert_eq!(Kind::of(&version($version)).map(|kind| (kind.network, kind.memory.get() >> 20)), $want);
            }
        )*};
    }

    fits! {
        a_function_that_says_nothing: |_| {} => Ok((Network::Egress, 256));
        one_without_a_network: |v| v.spec.network = Network::None => Ok((Network::None, 256));
        memory_of_a_rung: |v| v.spec.memory = Bytes::mib(512) => Ok((Network::Egress, 512));
        memory_between_two_rungs_has_the_lower: |v| v.spec.memory = Bytes::mib(511) => Ok((Network::Egress, 384));
        memory_beyond_the_ladder: |v| v.spec.memory = Bytes::mib(100_000) => Ok((Network::Egress, 16384));
        the_smallest: |v| v.spec.memory = Bytes::mib(64) => Ok((Network::Egress, 64));
        below_the_smallest: |v| v.spec.memory = Bytes::mib(63) => Err(Unfit::TooSmall);
        a_container: |v| v.spec.runtime = Runtime::Container => Err(Unfit::Runtime);
        an_old_version: |v| v.parts = None => Err(Unfit::NoParts);
    }

    #[test]
    fn variables_that_count_at_the_start_of_a_process() {
        for name in ["NODE_OPTIONS", "NODE_EXTRA_CA_CERTS", "UV_THREADPOOL_SIZE", "LD_PRELOAD"] {
            assert_eq!(env(name), Err(Unfit::Env(name.into())));
        }
        assert_eq!(env("SSL_CERT_FILE"), Err(Unfit::Env("SSL_CERT_FILE".into())));
        for name in ["NODE_ENV", "CURRENCY", "TZ", "LDAP_URL", "LANGUAGES", "UVX"] {
            assert!(env(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn usual_kind_is_that_of_a_default_function() {
        assert_eq!(Kind::of(&version(|_| {})), Ok(Kind::usual(base())));
    }

    #[test]
    fn kinds_differ_by_base() {
        let other = version(|v| {
            if let Some(parts) = &mut v.parts {
                parts.base.digest = "sha256:02".into();
            }
        });
        assert_ne!(Kind::of(&other), Kind::of(&version(|_| {})));
    }
}
