//! Settings of the gateway as an operator writes them ([`Settings`], section `gateway:` of the settings
//! file), and what is left when they were checked ([`Config`]). Every limit that the gateway knows
//! stands here with its reason.

pub use crate::call::version_addresses::Setting as VersionAddresses;
use crate::{
    autoscale::config as autoscale,
    call::{budget, place::bound::Balance, relay::pace::PaceLimits},
    deploy::elsewhere::ceilings,
    fleet::{breaker, health, member::Care},
    git::config as git,
    networks::Networks,
    retention::Keep,
    traffic::config as traffic,
    webhook,
};
use epsilon_api::{fleet, ids::ProjectName, units::Bytes, written};
use epsilon_wire::{limiter::Exempt, tls};
use serde::Deserialize;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

const KEEP_VERSIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// The section `gateway:`, as written. Every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where callers reach functions. Default `127.0.0.1:8080`: opening it to a network is a decision. Sockets that systemd
    /// passes (`calls`, `control`) go before it and `control`.
    pub listen: SocketAddr,
    /// Where the control API listens. Default `127.0.0.1:8081`. `/healthz` answers there without a key, and
    /// `/metrics` does to this machine.
    pub control: SocketAddr,
    /// `fn.example.org` makes `Host: NAME.fn.example.org` call the function `NAME`. Default: none.
    pub domain: Option<String>,
    /// What comes before `/NAME` in the addresses shown to people, when a load balancer stands in front.
    /// Default: made from `listen` (or `domain`).
    pub public_url: Option<String>,
    /// Load balancers and proxies in front of the gateway, as CIDRs or addresses: `[10.0.0.0/16]`. What they say of a caller
    /// (`X-Forwarded-For`, `-Proto`, `-Host`, `-Port`, `-Prefix`, `Forwarded`) is believed, of nobody else. Default: none.
    pub trusted_proxies: Networks,
    /// Largest body of a call. Default `100MiB`. Bodies are streamed; this protects functions, not the gateway.
    #[serde(deserialize_with = "written::text")]
    pub max_body: Bytes,
    /// Longest that a caller may let the platform wait for bytes of its body (408 beyond it), and for an answer to be read
    /// (the connection is closed). Default `10s`. Waiting uses it up, and bytes earn it back at `min_body_rate`. It does not
    /// count while a function does not read, nor for a body once its answer has begun. Six times as long for bodies on `control`.
    #[serde(deserialize_with = "written::duration")]
    pub body_timeout: Duration,
    /// Bytes that a caller has to send, or to read, in a second of waiting. Default `1KiB`: less than the slowest mobile
    /// connection, and enough that nobody holds a place of a function for nothing.
    #[serde(deserialize_with = "written::text")]
    pub min_body_rate: Bytes,
    /// Largest archive of a deployment, packed. Default `512MiB`.
    #[serde(deserialize_with = "written::text")]
    pub max_source: Bytes,
    /// Largest head of a request (431 beyond it). Default `64KiB`: room for large cookies and tokens.
    #[serde(deserialize_with = "written::text")]
    pub max_header: Bytes,
    /// Most header fields of a request (431 beyond it). Default 1024: within `max_header` nobody needs more.
    pub max_headers: usize,
    /// Connections at once on each listener. When four fifths are taken, idle ones are closed after 5 s; when all are, the
    /// one that was idle for longest makes room; where none is idle, a newcomer gets 503, and health checks their answer.
    /// An upgraded connection counts until it ends. Default 8192: some 20 KiB of memory each. Never more on `listen` than
    /// half of the files that the process may open, and on `control` than an eighth.
    pub max_connections: usize,
    /// Of them, of one address (of one /64 of IPv6); its own idle ones make room first. It does not apply to this machine
    /// and to addresses that stand for many callers. Default: an eighth of `max_connections`.
    pub max_connections_per_ip: Option<usize>,
    /// Longest a connection may take for a whole head, its first byte included. Default `10s`.
    #[serde(deserialize_with = "written::duration")]
    pub header_timeout: Duration,
    /// How long a connection stays open between two calls. Default `75s`: longer than the 60 s after which load
    /// balancers drop theirs, so that they never send into a connection that closes.
    #[serde(deserialize_with = "written::duration")]
    pub idle_timeout: Duration,
    /// How long a caller that closed its sending half is sent nothing until it counts as gone. Default `2s`: whether it still
    /// reads shows only when something is written; one whose connection is reset is known to be gone at once.
    #[serde(deserialize_with = "written::duration")]
    pub half_close_timeout: Duration,
    /// How long the rest of an unwanted body is read and thrown away, so that its sender sees the answer
    /// and not a broken connection. Default `10s`.
    #[serde(deserialize_with = "written::duration")]
    pub linger: Duration,
    /// Where members of the fleet and other gateways reach this gateway's control listener. Default: made from
    /// `control`.
    pub control_url: Option<String>,
    /// This gateway's certificate in PEM, to speak TLS with members that want it. Then `control` speaks TLS as well, and
    /// plain HTTP only with this machine. Members show a certificate of their own there; others need none, only a key.
    /// Set together with `tls_key` and `tls_authority`; how: docs/tls.md. Default: none, plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Who signed the certificates of the fleet, in PEM.
    pub tls_authority: Option<PathBuf>,
    /// Longest wait for a connection to a VM, its TLS included. Default `1s`: then a call goes to the next VM.
    #[serde(deserialize_with = "written::duration")]
    pub member_connect_timeout: Duration,
    /// How long a connection to a VM stays open between two requests. Default `15s`: shorter than the VM keeps it, so
    /// that no call is sent into a connection that closes.
    #[serde(deserialize_with = "written::duration")]
    pub member_idle_timeout: Duration,
    /// Longest that a member may take for what it does at once: take an order, begin to answer. Default `10s`.
    #[serde(deserialize_with = "written::duration")]
    pub member_order_timeout: Duration,
    /// Longest that a VM may take before a function runs: wait for a place, pull the image, start. Default `10m`:
    /// VMs have limits of their own for each, this one is for VMs that hang.
    #[serde(deserialize_with = "written::duration")]
    pub member_start_timeout: Duration,
    /// After so long without a report nobody waits any more for the answers that a VM owes (502). Default `15s`: a VM
    /// that only stood still goes on with its calls. New calls go elsewhere long before that.
    #[serde(deserialize_with = "written::duration")]
    pub member_lost_after: Duration,
    /// After so long without a sign of life a member is no longer listed. Default `10m`.
    #[serde(deserialize_with = "written::duration")]
    pub member_forget_after: Duration,
    /// Members that may join or beat at one moment; more are told to come again (429). Default 8: what a small
    /// database bears beside its work.
    pub max_joining: usize,
    /// How many times its share of all calls a VM may carry before a function's next call goes to the next VM of its
    /// order. Default 1.5: lower spreads functions over more VMs (cold starts), higher loads VMs less evenly.
    pub balance_factor: f64,
    /// Calls for each processor of a VM that are no reason to spread, however little the others do. Default 2: two calls at
    /// once do not start a function on a second idle VM.
    pub balance_floor: f64,
    /// How long a VM that has just come gets less than its share, growing. Default `30s`: it has nothing warm yet.
    #[serde(deserialize_with = "written::duration")]
    pub slow_start: Duration,
    /// VMs that one call is tried on at most; on the last one it may wait for a place. Default 4.
    pub max_tries: usize,
    /// Second attempts for each hundred calls, after failures. Default 20: when everything fails at once, the fleet
    /// gets a fifth more calls and not several times as many. A VM that has no room costs nothing of it.
    pub retry_percent: u32,
    /// Second attempts each second that there are in any case. Default 10: a quiet gateway can retry, too.
    pub retry_per_second: u32,
    /// Without a report for so long a VM gets no new calls. Default `3s`: three reports.
    #[serde(deserialize_with = "written::duration")]
    pub vm_silence: Duration,
    /// Calls in a row that fail by a VM's fault, within `failure_window`, until it gets no new ones for `vm_pause`. Default 5.
    pub vm_failures: u32,
    /// How far apart failures in a row may be, of VMs and of functions on them. Default `10s`.
    #[serde(deserialize_with = "written::duration")]
    pub failure_window: Duration,
    /// How long a failing VM gets no calls at first; twice as long each time that it fails again at once, at most `1m`.
    /// Default `5s`. The last VM that answers always gets calls.
    #[serde(deserialize_with = "written::duration")]
    pub vm_pause: Duration,
    /// Calls of one function in a row that fail on one VM by the platform's fault, within `failure_window`, until they go
    /// to other VMs for `breaker_pause`. Default 3.
    pub breaker_failures: u32,
    /// How long they do; then one call tries. Default `10s`.
    #[serde(deserialize_with = "written::duration")]
    pub breaker_pause: Duration,
    /// Longest deployment, waiting for another one of the same project included. Default `30m`.
    #[serde(deserialize_with = "written::duration")]
    pub deploy_timeout: Duration,
    /// Longest that one VM may take to get a new version's image; then the deployment goes on without that VM.
    /// Default `5m`: a large image over a slow line.
    #[serde(deserialize_with = "written::duration")]
    pub fetch_timeout: Duration,
    /// Longest that a builder which joined may say nothing, in a build or before it. Default `30s`: a builder that
    /// lives says something each 5 s.
    #[serde(deserialize_with = "written::duration")]
    pub builder_silence: Duration,
    /// Newest versions of each function that are kept, and can serve again; older ones are removed with their images.
    /// Default 10: some days of work to go back to. A version that serves or has a share of the calls stays in any case.
    pub keep_versions: NonZeroU32,
    /// Who may call a version by its own address, `/{function}@{version}`: `public`, whoever may call the function; `key`, who sends
    /// the admin key as `x-epsilon-key`; `off`, nobody. Default `public`: previews and comparisons are links. What a newer version
    /// has mended can be called there until the old one is retired (`epsilon versions NAME --retire N`) or no longer kept.
    pub version_addresses: VersionAddresses,
    /// How long an image stays after the last version that had it was removed. Default `10m`: whoever deletes a function or
    /// fixes a deployment that failed, and deploys the same code again, finds it built.
    #[serde(deserialize_with = "written::duration")]
    pub image_grace: Duration,
    /// What functions may have whose images were made elsewhere: a mapping of its own, see `gateway.ceilings` below.
    pub ceilings: ceilings::Settings,
    /// How many VMs the fleet should have, and who makes them: a mapping of its own, see `gateway.autoscale` below.
    /// Default: nobody makes any; the wanted count is only shown.
    pub autoscale: autoscale::Settings,
    /// When a split of a function's calls ends by itself: a mapping of its own, see `gateway.traffic` below.
    pub traffic: traffic::Settings,
    /// `git push` as a deployment: a mapping of its own, see `gateway.git` below.
    pub git: git::Settings,
    /// What the webhooks of all projects may do and take: a mapping of its own, see `gateway.hooks` below.
    pub hooks: webhook::config::Settings,
    /// Projects that a hub's webhook deploys, by name: mappings of their own, see `gateway.github.<project>` below. Default:
    /// none.
    pub github: BTreeMap<ProjectName, webhook::project::Settings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            control: (Ipv4Addr::LOCALHOST, 8081).into(),
            domain: None,
            public_url: None,
            trusted_proxies: Networks::default(),
            max_body: Bytes::mib(100),
            body_timeout: Duration::from_secs(10),
            min_body_rate: Bytes(1 << 10),
            max_source: Bytes::mib(512),
            max_header: Bytes(64 << 10),
            max_headers: 1024,
            max_connections: 8192,
            max_connections_per_ip: None,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            half_close_timeout: Duration::from_secs(2),
            linger: Duration::from_secs(10),
            control_url: None,
            tls_certificate: None,
            tls_key: None,
            tls_authority: None,
            member_connect_timeout: Duration::from_secs(1),
            member_idle_timeout: Duration::from_secs(15),
            member_order_timeout: Duration::from_secs(10),
            member_start_timeout: Duration::from_secs(10 * 60),
            member_lost_after: Duration::from_secs(15),
            member_forget_after: Duration::from_secs(10 * 60),
            max_joining: 8,
            balance_factor: 1.5,
            balance_floor: 2.0,
            slow_start: Duration::from_secs(30),
            max_tries: 4,
            retry_percent: 20,
            retry_per_second: 10,
            vm_silence: 3 * fleet::REPORT,
            vm_failures: 5,
            failure_window: Duration::from_secs(10),
            vm_pause: Duration::from_secs(5),
            breaker_failures: 3,
            breaker_pause: Duration::from_secs(10),
            deploy_timeout: Duration::from_secs(30 * 60),
            fetch_timeout: Duration::from_secs(5 * 60),
            builder_silence: Duration::from_secs(30),
            keep_versions: KEEP_VERSIONS,
            version_addresses: VersionAddresses::default(),
            image_grace: Duration::from_secs(10 * 60),
            ceilings: ceilings::Settings::default(),
            autoscale: autoscale::Settings::default(),
            traffic: traffic::Settings::default(),
            git: git::Settings::default(),
            hooks: webhook::config::Settings::default(),
            github: BTreeMap::new(),
        }
    }
}

/// Checked settings. Holding one means that it is valid.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) control: SocketAddr,
    pub(crate) data_dir: PathBuf,
    /// Lower case.
    pub(crate) domain: Option<String>,
    /// Without a slash at its end.
    pub(crate) public_url: Option<String>,
    pub(crate) trusted_proxies: Networks,
    pub(crate) max_body: Bytes,
    pub(crate) pace: PaceLimits,
    pub(crate) max_source: Bytes,
    pub(crate) linger: Duration,
    pub(crate) balance: Balance,
    pub(crate) version_addresses: VersionAddresses,
    pub(crate) max_tries: usize,
    pub(crate) retries: budget::Policy,
    pub(crate) care: Care,
    pub(crate) deploy_timeout: Duration,
    pub(crate) fetch_timeout: Duration,
    pub(crate) builder_silence: Duration,
    pub(crate) connection: ConnectionLimits,
    /// Without a slash at its end.
    pub(crate) control_url: Option<String>,
    pub(crate) tls: Option<tls::Files>,
    pub(crate) members: MemberLimits,
    pub(crate) keep: Keep,
    pub(crate) ceilings: ceilings::Settings,
    pub(crate) autoscale: autoscale::Config,
    pub(crate) traffic: traffic::Config,
    pub(crate) git: git::Config,
    pub(crate) hooks: webhook::config::Config,
}

/// What members of the fleet may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemberLimits {
    pub(crate) connect: Duration,
    pub(crate) idle: Duration,
    pub(crate) order: Duration,
    pub(crate) start: Duration,
    pub(crate) lost_after: Duration,
    pub(crate) forget_after: Duration,
    pub(crate) max_joining: usize,
}

/// What one connection may take.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimits {
    pub(crate) max_connections: usize,
    pub(crate) max_per_address: usize,
    /// Addresses that stand for many callers: this machine's own, and whoever is trusted to speak for others.
    pub(crate) exempt: Exempt,
    pub(crate) max_header: usize,
    pub(crate) max_headers: usize,
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    /// How slowly an answer may be read.
    pub(crate) pace: PaceLimits,
    pub(crate) half_close_timeout: Duration,
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`gateway.{key}`: {rule}")]
pub struct ConfigError {
    /// Which setting.
    pub key: &'static str,
    /// What it must be.
    pub rule: Cow<'static, str>,
}

/// The part of all connections that one address may have.
const SHARE_OF_ADDRESS: usize = 8;
/// hyper's read buffer cannot be smaller.
const SMALLEST_HEADER: u64 = 8 << 10;
const LARGEST_HEADER: u64 = 1 << 20;

impl Config {
    /// Checks the settings. `data_dir` is where `admin.key`, `fleet.token` and `builder.token` are written.
    ///
    /// # Errors
    /// When a setting cannot work; the first one is named.
    pub fn new(settings: Settings, data_dir: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let rule = |holds: bool, key, rule: &'static str| {
            if holds { Ok(()) } else { Err(ConfigError { key, rule: rule.into() }) }
        };
        rule(settings.max_connections > 0, "max_connections", "must be at least 1")?;
        let per_ip = settings.max_connections_per_ip;
        rule(per_ip != Some(0), "max_connections_per_ip", "must be at least 1")?;
        rule(
            (SMALLEST_HEADER..=LARGEST_HEADER).contains(&settings.max_header.get()),
            "max_header",
            "must be between `8KiB` and `1MiB`",
        )?;
        rule(
            (8..=1024).contains(&settings.max_headers),
            "max_headers",
            "must be between 8 and 1024",
        )?;
        rule(settings.min_body_rate.get() > 0, "min_body_rate", "must be at least `1B`")?;
        for (key, value) in [
            ("header_timeout", settings.header_timeout),
            ("body_timeout", settings.body_timeout),
            ("idle_timeout", settings.idle_timeout),
            ("half_close_timeout", settings.half_close_timeout),
            ("deploy_timeout", settings.deploy_timeout),
            ("failure_window", settings.failure_window),
            ("vm_pause", settings.vm_pause),
            ("breaker_pause", settings.breaker_pause),
            ("fetch_timeout", settings.fetch_timeout),
            ("member_connect_timeout", settings.member_connect_timeout),
            ("member_order_timeout", settings.member_order_timeout),
            ("member_start_timeout", settings.member_start_timeout),
        ] {
            rule(!value.is_zero(), key, "must be longer than `0s`")?;
        }
        rule(
            settings.builder_silence > 2 * epsilon_api::build::HEARTBEAT,
            "builder_silence",
            "must be longer than `10s`: two signs of life of a builder",
        )?;
        let domain = settings.domain.map(|domain| domain.to_ascii_lowercase());
        rule(
            domain.as_deref().is_none_or(is_domain),
            "domain",
            "must be a host name such as `fn.example.org`, without a dot at its ends",
        )?;
        rule(
            settings.public_url.as_deref().is_none_or(is_http_url),
            "public_url",
            "must start with `http://` or `https://`",
        )?;
        rule(
            settings.control_url.as_deref().is_none_or(is_http_url),
            "control_url",
            "must start with `http://` or `https://`",
        )?;
        rule(
            settings.member_lost_after > 3 * fleet::REPORT,
            "member_lost_after",
            "must be longer than `3s`, after which a VM gets no new calls",
        )?;
        rule(
            settings.member_forget_after >= 12 * fleet::BEAT,
            "member_forget_after",
            "must be at least `1m`: a member tells that it is there each 5 s",
        )?;
        rule(settings.max_joining > 0, "max_joining", "must be at least 1")?;
        rule(
            (1.1..=10.0).contains(&settings.balance_factor),
            "balance_factor",
            "must be between 1.1 and 10",
        )?;
        rule(
            (0.0..=1000.0).contains(&settings.balance_floor),
            "balance_floor",
            "must be between 0 and 1000",
        )?;
        rule((1..=16).contains(&settings.max_tries), "max_tries", "must be between 1 and 16")?;
        rule(settings.retry_percent <= 100, "retry_percent", "must be at most 100")?;
        rule(
            settings.vm_silence >= 2 * fleet::REPORT
                && settings.vm_silence < settings.member_lost_after,
            "vm_silence",
            "must be at least `2s`, as a VM reports each second, and shorter than `member_lost_after`",
        )?;
        rule(settings.vm_failures > 0, "vm_failures", "must be at least 1")?;
        rule(settings.breaker_failures > 0, "breaker_failures", "must be at least 1")?;
        let tls = tls::Files::from_settings(
            settings.tls_certificate,
            settings.tls_key,
            settings.tls_authority,
        )
        .map_err(|_| ConfigError {
            key: "tls_certificate",
            rule: "is set together with `tls_key` and `tls_authority`, or none of them".into(),
        })?;
        let pace =
            PaceLimits { patience: settings.body_timeout, rate: settings.min_body_rate.get() };
        let autoscale = autoscale::Config::new(settings.autoscale)?;
        let git = git::Config::new(settings.git, settings.max_source)?;
        let hooks = webhook::config::Config::new(settings.hooks, settings.github)?;
        Ok(Self {
            ceilings: settings.ceilings,
            keep: Keep { versions: settings.keep_versions, grace: settings.image_grace },
            version_addresses: settings.version_addresses,
            autoscale,
            traffic: traffic::Config::new(&settings.traffic)?,
            git,
            hooks,
            control_url: settings.control_url.map(|url| url.trim_end_matches('/').to_owned()),
            tls,
            members: MemberLimits {
                connect: settings.member_connect_timeout,
                idle: settings.member_idle_timeout,
                order: settings.member_order_timeout,
                start: settings.member_start_timeout,
                lost_after: settings.member_lost_after,
                forget_after: settings.member_forget_after,
                max_joining: settings.max_joining,
            },
            listen: settings.listen,
            control: settings.control,
            data_dir: data_dir.into(),
            domain,
            public_url: settings.public_url.map(|url| url.trim_end_matches('/').to_owned()),
            trusted_proxies: settings.trusted_proxies.clone(),
            max_body: settings.max_body,
            pace,
            max_source: settings.max_source,
            linger: settings.linger,
            balance: Balance {
                factor: settings.balance_factor,
                calls_per_core: settings.balance_floor,
                slow_start: settings.slow_start,
            },
            max_tries: settings.max_tries,
            retries: budget::Policy {
                percent: settings.retry_percent,
                per_second: settings.retry_per_second,
            },
            care: Care {
                slow_start: settings.slow_start,
                health: health::Policy {
                    silence: settings.vm_silence,
                    failures: settings.vm_failures,
                    window: settings.failure_window,
                    pause: settings.vm_pause,
                },
                breaker: breaker::Policy {
                    failures: settings.breaker_failures,
                    window: settings.failure_window,
                    pause: settings.breaker_pause,
                },
            },
            deploy_timeout: settings.deploy_timeout,
            fetch_timeout: settings.fetch_timeout,
            builder_silence: settings.builder_silence,
            connection: ConnectionLimits {
                max_connections: settings.max_connections,
                max_per_address: settings
                    .max_connections_per_ip
                    .unwrap_or_else(|| (settings.max_connections / SHARE_OF_ADDRESS).max(1)),
                exempt: {
                    let trusted = settings.trusted_proxies;
                    Exempt::new(move |address| address.is_loopback() || trusted.contains(address))
                },
                max_header: settings.max_header.get() as usize,
                max_headers: settings.max_headers,
                header_timeout: settings.header_timeout,
                idle_timeout: settings.idle_timeout,
                pace,
                half_close_timeout: settings.half_close_timeout,
            },
        })
    }
}

fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

fn is_http_url(text: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| text.len() > scheme.len() && text.starts_with(scheme))
}

#[cfg(test)]
mod tests;
