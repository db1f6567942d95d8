//! Settings of the gateway as an operator writes them ([`Settings`], section `gateway:` of the
//! settings file), and their checked form ([`Config`]).

use crate::autoscale::config as autoscale;
pub use crate::call::version_addresses::Setting as VersionAddresses;
use crate::config::invalid::ConfigError;
use crate::deploy::prebuilt::ceilings;
use crate::fleet::member::HealthPolicy;
use crate::fleet::{breaker, health};
use crate::invoke::retry::budget;
use crate::networks::Networks;
use crate::placement::bounded_load::Balance;
use crate::reconcile::retention::Keep;
use crate::source::git::config as git;
use crate::source::github;
use crate::traffic::config as traffic;
use epsilon_api::ids::ProjectName;
use epsilon_api::units::Bytes;
use epsilon_api::{fleet, serde_text};
use epsilon_fleet_link::tls;
use epsilon_http_server::{Limits, limiter::Exempt, pace::PaceLimits};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

const KEEP_VERSIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);

/// The section `gateway:`. Every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where callers reach functions. Default `127.0.0.1:8080`: opening it to a network is a
    /// decision. Sockets passed by systemd (`calls`, `control`) take precedence over `listen` and
    /// `control`.
    pub listen: SocketAddr,
    /// Where the control API listens. Default `127.0.0.1:8081`. `/healthz` needs no key, and
    /// `/metrics` needs none from this machine.
    pub control: SocketAddr,
    /// `fn.example.org` makes `Host: NAME.fn.example.org` call the function `NAME`. Default: none.
    pub domain: Option<String>,
    /// What comes before `/NAME` in the URLs shown to people, if a load balancer is in front.
    /// Default: derived from `listen` (or `domain`).
    pub public_url: Option<String>,
    /// Load balancers and proxies in front of the gateway, as CIDRs or addresses: `[10.0.0.0/16]`.
    /// Only their forwarding headers (`X-Forwarded-For`, `-Proto`, `-Host`, `-Port`, `-Prefix`,
    /// `Forwarded`) are believed. Default: none.
    pub trusted_proxies: Networks,
    /// Largest body of a call. Default `100MiB`. Bodies are streamed; this protects functions, not
    /// the gateway.
    #[serde(deserialize_with = "serde_text::text")]
    pub max_body: Bytes,
    /// Longest that a caller may keep the platform waiting for bytes of its body (408 beyond it),
    /// or for an answer to be read (the connection is closed). Default `10s`. Waiting uses it up,
    /// and bytes earn it back at `min_body_rate`. It does not count while a function does not read,
    /// nor for a body once its answer has begun. Six times as long for bodies on `control`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub body_timeout: Duration,
    /// Bytes that a caller has to send, or to read, per second of waiting. Default `1KiB`: less
    /// than the slowest mobile connection, and enough that a slow caller does not occupy a
    /// concurrency slot for long.
    #[serde(deserialize_with = "serde_text::text")]
    pub min_body_rate: Bytes,
    /// Largest archive of a deployment, compressed. Default `512MiB`.
    #[serde(deserialize_with = "serde_text::text")]
    pub max_source: Bytes,
    /// Largest head of a request (431 beyond it). Default `64KiB`: room for large cookies and
    /// tokens.
    #[serde(deserialize_with = "serde_text::text")]
    pub max_header: Bytes,
    /// Most header fields of a request (431 beyond it). Default 1024: more do not occur within
    /// `max_header`.
    pub max_headers: usize,
    /// Concurrent connections on each listener. When four fifths of the slots are taken, idle
    /// connections are closed after 5 s; when all are, the one that has been idle longest is closed
    /// for a new one; if none is idle, a new connection gets 503, and health checks get their
    /// answer. An upgraded connection counts until it ends. Default 8192: some 20 KiB of memory
    /// each. At most half of the files that the process may open on `listen`, and an eighth on
    /// `control`.
    pub max_connections: usize,
    /// Of these, connections of one address (of one /64 of IPv6); its own idle ones are closed
    /// first. Does not apply to this machine and to addresses that stand for many callers. Default:
    /// an eighth of `max_connections`.
    pub max_connections_per_ip: Option<usize>,
    /// Longest time for a connection to send a complete head, from its first byte. Default `10s`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub header_timeout: Duration,
    /// How long a connection stays open between two calls. Default `75s`: longer than the 60 s
    /// after which load balancers drop theirs, so that they never send into a connection that
    /// closes.
    #[serde(deserialize_with = "serde_text::duration")]
    pub idle_timeout: Duration,
    /// A caller that closed its sending half and is sent nothing for this long counts as gone.
    /// Default `2s`: whether it still reads shows only when something is written; a connection
    /// reset is noticed at once.
    #[serde(deserialize_with = "serde_text::duration")]
    pub half_close_timeout: Duration,
    /// How long the rest of an unwanted body is read and discarded, so that its sender sees the
    /// answer and not a broken connection. Default `10s`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub linger: Duration,
    /// URL of this gateway's control listener for members of the fleet and other gateways. Default:
    /// derived from `control`.
    pub control_url: Option<String>,
    /// This gateway's certificate in PEM, for TLS with members. Then `control` uses TLS as well,
    /// and accepts plain HTTP only from this machine. Members must show a certificate of their own
    /// there; other clients need none, only a key. Set together with `tls_key` and `tls_authority`;
    /// how: docs/tls.md. Default: none, plain HTTP.
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// The authority that signed the certificates of the fleet, in PEM.
    pub tls_authority: Option<PathBuf>,
    /// `listen` speaks TLS as well, with `tls_certificate`, for a load balancer that speaks TLS
    /// with its targets; then plain HTTP is for this machine only. Clients need no certificate
    /// there. Default `false`.
    pub listen_tls: bool,
    /// Longest wait for a connection to a VM, its TLS included. Default `1s`: then a call goes to
    /// the next VM.
    #[serde(deserialize_with = "serde_text::duration")]
    pub member_connect_timeout: Duration,
    /// How long a connection to a VM stays open between two requests. Default `15s`: shorter than
    /// the VM keeps it, so that no call is sent into a connection that closes.
    #[serde(deserialize_with = "serde_text::duration")]
    pub member_idle_timeout: Duration,
    /// Longest time for a member to do what it does at once: accept an order, begin to answer.
    /// Default `10s`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub member_order_timeout: Duration,
    /// Longest time for a VM before a function runs: queueing, pulling the image, starting. Default
    /// `10m`: VMs have their own limits for each; this one is for VMs that hang.
    #[serde(deserialize_with = "serde_text::duration")]
    pub member_start_timeout: Duration,
    /// Time without a report after which pending calls on a VM fail (502). Default `15s`: a VM that
    /// was only suspended continues its calls. New calls go to other VMs long before that.
    #[serde(deserialize_with = "serde_text::duration")]
    pub member_lost_after: Duration,
    /// Time without a sign of life after which a member is removed from the fleet. Default `10m`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub member_forget_after: Duration,
    /// Concurrent joins and heartbeats of members; more are refused with 429 and retried. Default
    /// 8: what a small database handles besides its other work.
    pub max_joining: usize,
    /// How many times its fair share of all calls a VM may carry before a function's next call goes
    /// to the next VM of its order. Default 1.5: a lower value spreads functions over more VMs
    /// (cold starts), a higher one loads VMs less evenly.
    pub balance_factor: f64,
    /// Calls for each CPU of a VM below which functions are not spread, however little the other
    /// VMs carry. Default 2: two concurrent calls do not start a function on a second idle VM.
    pub balance_floor: f64,
    /// How long a new VM gets less than its share, which grows. Default `30s`: it has no warm
    /// instances yet.
    #[serde(deserialize_with = "serde_text::duration")]
    pub slow_start: Duration,
    /// VMs on which one call is tried at most; on the last one it may wait for a slot. Default 4.
    pub max_tries: usize,
    /// Retries for each hundred calls, after failures. Default 20: when everything fails at once,
    /// the fleet gets a fifth more calls and not several times as many. A VM without room does not
    /// count.
    pub retry_percent: u32,
    /// Retries per second that are always allowed. Default 10: a gateway with few calls can retry,
    /// too.
    pub retry_per_second: u32,
    /// Time without a report after which a VM gets no new calls. Default `3s`: three reports.
    #[serde(deserialize_with = "serde_text::duration")]
    pub vm_silence: Duration,
    /// Consecutive calls that fail by a VM's fault, within `failure_window`, after which it gets no
    /// new ones for `vm_pause`. Default 5.
    pub vm_failures: u32,
    /// Window of consecutive failures, of VMs and of functions on them. Default `10s`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub failure_window: Duration,
    /// How long a failing VM gets no calls at first; doubled each time it fails again soon, at most
    /// `1m`. Default `5s`. The last VM that responds always gets calls.
    #[serde(deserialize_with = "serde_text::duration")]
    pub vm_pause: Duration,
    /// Consecutive calls of one function that fail on one VM by the platform's fault, within
    /// `failure_window`, after which they go to other VMs for `breaker_pause`. Default 3.
    pub breaker_failures: u32,
    /// How long they do, before one trial call. Default `10s`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub breaker_pause: Duration,
    /// Longest deployment, including the wait for another one of the same project. Default `30m`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub deploy_timeout: Duration,
    /// Longest time for one VM to pull a new version's image; then the deployment continues
    /// without that VM. Default `5m`: a large image over a slow line.
    #[serde(deserialize_with = "serde_text::duration")]
    pub fetch_timeout: Duration,
    /// Longest that a joined builder may send nothing, during a build or before it. Default `30s`:
    /// a builder sends a heartbeat every 5 s.
    #[serde(deserialize_with = "serde_text::duration")]
    pub builder_silence: Duration,
    /// Newest versions of each function that are stored and can serve again; older ones are removed
    /// with their images. Default 10: some days of work to go back to. A version that serves or
    /// gets a share of the calls is never removed.
    pub keep_versions: NonZeroU32,
    /// Who may call a version by its own address, `/{function}@{version}`: `public`, everyone who
    /// may call the function; `key`, callers that send the admin key as `x-epsilon-key`; `off`, no
    /// one. Default `public`: previews and comparisons are links. A vulnerability fixed by a newer
    /// version can be reached there until the old version is retired (`epsilon versions NAME
    /// --retire N`) or removed.
    pub version_addresses: VersionAddresses,
    /// How long an image is stored after the last version with it was removed. Default `10m`: after
    /// a function is deleted or a failed deployment is fixed, deploying the same code again needs
    /// no build.
    #[serde(deserialize_with = "serde_text::duration")]
    pub image_grace: Duration,
    /// Limits for functions whose images were built elsewhere: a mapping of its own, see
    /// `gateway.ceilings` below.
    pub ceilings: ceilings::Settings,
    /// How many VMs the fleet should have, and which system creates them: a mapping of its own, see
    /// `gateway.autoscale` below. Default: none; the wanted count is only shown.
    pub autoscale: autoscale::Settings,
    /// When a split of a function's calls ends automatically: a mapping of its own, see
    /// `gateway.traffic` below.
    pub traffic: traffic::Settings,
    /// `git push` as a deployment: a mapping of its own, see `gateway.git` below.
    pub git: git::Settings,
    /// Limits of the webhooks of all projects: a mapping of its own, see `gateway.hooks` below.
    pub hooks: github::config::Settings,
    /// Projects that a GitHub webhook deploys, by name: mappings of their own, see
    /// `gateway.github.<project>` below. Default: none.
    pub github: BTreeMap<ProjectName, github::project::Settings>,
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
            listen_tls: false,
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
            hooks: github::config::Settings::default(),
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
    /// In lower case.
    pub(crate) domain: Option<String>,
    /// Without a trailing slash.
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
    pub(crate) health_policy: HealthPolicy,
    pub(crate) deploy_timeout: Duration,
    pub(crate) fetch_timeout: Duration,
    pub(crate) builder_silence: Duration,
    pub(crate) connection: Limits,
    /// Without a trailing slash.
    pub(crate) control_url: Option<String>,
    pub(crate) tls: Option<tls::Files>,
    /// Those of `tls`, where the public listener speaks TLS.
    pub(crate) public_tls: Option<tls::Files>,
    pub(crate) members: MemberLimits,
    pub(crate) keep: Keep,
    pub(crate) ceilings: ceilings::Settings,
    pub(crate) autoscale: autoscale::Config,
    pub(crate) traffic: traffic::Config,
    pub(crate) git: git::Config,
    pub(crate) hooks: github::config::Config,
}

/// Limits for members of the fleet.
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

/// How long a connection may be idle when its listener is nearly full.
const CROWDED_IDLE: Duration = Duration::from_secs(5);
/// The default for one address: this part of all connections.
const SHARE_OF_ADDRESS: usize = 8;
/// hyper's read buffer cannot be smaller.
const SMALLEST_HEADER: u64 = 8 << 10;
const LARGEST_HEADER: u64 = 1 << 20;

impl Config {
    /// Checks the settings. `admin.key`, `fleet.token` and `builder.token` are written to
    /// `data_dir`.
    ///
    /// # Errors
    /// When a setting is invalid; the error names the first one.
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
            "must be longer than `10s`: two heartbeats of a builder",
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
            settings.member_forget_after >= 12 * fleet::HEARTBEAT_INTERVAL,
            "member_forget_after",
            "must be at least `1m`: a member sends a heartbeat every 5 s",
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
            "must be at least `2s`, as a VM reports every second, and shorter than `member_lost_after`",
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
            rule: "must be set together with `tls_key` and `tls_authority`, or none of them".into(),
        })?;
        let public_tls = tls.clone().filter(|_| settings.listen_tls);
        rule(
            public_tls.is_some() || !settings.listen_tls,
            "listen_tls",
            "needs `tls_certificate`, `tls_key` and `tls_authority`",
        )?;
        let pace =
            PaceLimits { wait_budget: settings.body_timeout, rate: settings.min_body_rate.get() };
        let autoscale = autoscale::Config::new(settings.autoscale)?;
        let git = git::Config::new(settings.git, settings.max_source)?;
        let hooks = github::config::Config::new(settings.hooks, settings.github)?;
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
            public_tls,
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
            health_policy: HealthPolicy {
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
            connection: Limits {
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
                half_close_timeout: Some(settings.half_close_timeout),
                has_reserve: true,
                crowded_idle_timeout: CROWDED_IDLE,
                unread_end_timeout: None, // `pace` is shorter
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

pub(crate) mod invalid;
#[cfg(test)]
mod tests;
