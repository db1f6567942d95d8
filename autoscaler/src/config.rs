//! Settings of the autoscaler as an operator writes them ([`Settings`], `gateway.autoscale` in the
//! settings file), and their checked form ([`Config`]). Every number used by the policy and the
//! loop is here or in `config.default.yaml` with its reason; `docs/autoscaling.md` explains their effect.

use super::schedule::{Window, WindowSettings};
use epsilon_api::serde_text;
use epsilon_api::units::Bytes;
use epsilon_bootstrap::settings::{
    Defaults,
    invalid::{ConfigError, rule},
};
use serde::Deserialize;
use std::time::Duration;

/// The gateway's file: operators read one, whatever crate an area of it is in.
pub(crate) const DEFAULTS: Defaults =
    Defaults::new("gateway", include_str!("../../gateway/config.default.yaml"));

/// The mapping `gateway.autoscale`.
#[allow(missing_docs, reason = "`config.default.yaml` explains each key")]
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub driver: DriverKind,
    pub group: Option<String>,
    pub region: Option<String>,
    pub endpoint: Option<String>,
    pub command: Vec<String>,
    pub dry_run: bool,
    pub min: u32,
    pub max: u32,
    pub schedule: Vec<WindowSettings>,
    #[serde(deserialize_with = "serde_text::text")]
    pub place: Bytes,
    pub places_per_core: f64,
    pub target: f64,
    pub headroom: u32,
    #[serde(deserialize_with = "serde_text::duration")]
    pub stable_window: Duration,
    #[serde(deserialize_with = "serde_text::duration")]
    pub boot_time: Duration,
    pub trend_limit: f64,
    #[serde(deserialize_with = "serde_text::duration")]
    pub scale_in_after: Duration,
    #[serde(deserialize_with = "serde_text::duration")]
    pub leave_grace: Duration,
    #[serde(deserialize_with = "serde_text::duration")]
    pub every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        DEFAULTS.of("autoscale")
    }
}

/// Longest run time of the command of `exec`; then it is killed and retried later. Clouds accept an
/// order for a machine within seconds.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// When every place is taken, demand is averaged over this part of `stable_window`: reacts to jumps
/// at once, but not to a single second, as one sample is stored for each.
const PANIC_SHARE: u32 = 10;
const SHORTEST_PANIC: Duration = Duration::from_secs(1);
/// Share of all places in use, waiting calls included, from which that is done: calls begin to
/// wait.
const PANIC_AT: f64 = 1.0;
/// Most VMs ordered beyond those that serve; a schedule or minimum may order more. A wave of calls
/// caused by one bug does not order a hundred.
const STARTING_AT_ONCE: u32 = 10;
/// Largest share of the group's VMs that leave at the same time, at least one VM.
const LEAVING_SHARE: f64 = 0.1;
/// How many rounds of `every` a gateway stays the leader without renewing its lease: two may fail.
const LEASE_ROUNDS: u32 = 3;
/// With a long `every`, another gateway leads this much later than the next round at most.
const LONGEST_LEASE: Duration = Duration::from_secs(5 * 60);
/// Decisions that are stored for `epsilon autoscaler`.
const DECISIONS: usize = 100;

/// Which system creates and terminates VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverKind {
    /// None: the wanted count is only shown.
    #[default]
    None,
    /// A command of the operator.
    Exec,
    /// An EC2 Auto Scaling group.
    AwsAsg,
}

/// Checked settings. Holding one means that it is valid.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) driver: Driver,
    pub(crate) dry_run: bool,
    pub(crate) place: Bytes,
    pub(crate) places_per_core: f64,
    pub(crate) leaving_share: f64,
    pub(crate) leave_grace: Duration,
    pub(crate) every: Duration,
    pub(crate) lease: Duration,
    pub(crate) decisions: usize,
    pub(crate) policy: PolicyConfig,
}

/// The driver and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// No driver.
    None,
    /// A command of the operator.
    Exec {
        /// The program and its first arguments; not empty.
        command: Vec<String>,
        /// Longest run time of the command.
        timeout: Duration,
    },
    /// An EC2 Auto Scaling group.
    AwsAsg {
        /// Name of the group.
        group: String,
        /// AWS region of the group.
        region: Option<String>,
        /// Endpoint of the API instead of AWS's own.
        endpoint: Option<String>,
    },
}

impl Driver {
    /// The driver's name in the settings.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Exec { .. } => "exec",
            Self::AwsAsg { .. } => "aws-asg",
        }
    }
}

/// The settings of the policy.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) schedule: Vec<Window>,
    pub(crate) target: f64,
    pub(crate) headroom: u32,
    pub(crate) stable_window: Duration,
    pub(crate) panic_window: Duration,
    pub(crate) panic_at: f64,
    pub(crate) boot_time: Duration,
    pub(crate) trend_limit: f64,
    pub(crate) starting_at_once: u32,
    pub(crate) scale_in_after: Duration,
}

/// Longest window; one sample per second is stored.
const LONGEST_WINDOW: Duration = Duration::from_secs(60 * 60);

impl Config {
    /// Checks the settings.
    ///
    /// # Errors
    /// When a setting is invalid; the error names the first one.
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        check(&settings)?;
        let schedule = settings
            .schedule
            .iter()
            .map(|window| {
                let wrong =
                    |rule: String| ConfigError { key: "autoscale.schedule", rule: rule.into() };
                window.check().map_err(wrong)
            })
            .collect::<Result<_, _>>()?;
        let driver = match settings.driver {
            DriverKind::None => Driver::None,
            DriverKind::Exec => {
                Driver::Exec { command: settings.command, timeout: COMMAND_TIMEOUT }
            }
            DriverKind::AwsAsg => Driver::AwsAsg {
                group: settings.group.unwrap_or_default(),
                region: settings.region,
                endpoint: settings.endpoint,
            },
        };
        Ok(Self {
            driver,
            dry_run: settings.dry_run,
            place: settings.place,
            places_per_core: settings.places_per_core,
            leaving_share: LEAVING_SHARE,
            leave_grace: settings.leave_grace,
            every: settings.every,
            lease: (settings.every * LEASE_ROUNDS).min(settings.every + LONGEST_LEASE),
            decisions: DECISIONS,
            policy: PolicyConfig {
                min: settings.min,
                max: settings.max,
                schedule,
                target: settings.target,
                headroom: settings.headroom,
                stable_window: settings.stable_window,
                panic_window: (settings.stable_window / PANIC_SHARE).max(SHORTEST_PANIC),
                panic_at: PANIC_AT,
                boot_time: settings.boot_time,
                trend_limit: settings.trend_limit,
                starting_at_once: STARTING_AT_ONCE,
                scale_in_after: settings.scale_in_after,
            },
        })
    }

    /// The settings of the policy.
    pub fn policy(&self) -> &PolicyConfig {
        &self.policy
    }
}

/// All rules except those of the schedule.
fn check(settings: &Settings) -> Result<(), ConfigError> {
    let named = settings.group.as_deref().is_some_and(|name| !name.trim().is_empty());
    let aws = settings.driver == DriverKind::AwsAsg;
    rule(!aws || named, "autoscale.group", "the driver `aws-asg` needs the group's name")?;
    rule(
        !aws || cfg!(feature = "aws"),
        "autoscale.driver",
        "this program was built without AWS (the cargo feature `aws`); release packages and `make build` have it",
    )?;
    rule(
        settings.driver != DriverKind::Exec || !settings.command.is_empty(),
        "autoscale.command",
        "the driver `exec` needs a command, such as `[/usr/local/bin/scale]`",
    )?;
    rule(
        settings.min >= 1,
        "autoscale.min",
        "must be at least 1, or no VM could take the first call",
    )?;
    rule(settings.max >= settings.min, "autoscale.max", "must not be smaller than `min`")?;
    rule(settings.place.get() >= 1 << 20, "autoscale.place", "must be at least `1MiB`")?;
    let within = |value: f64, least: f64, most: f64| (least..=most).contains(&value);
    rule(
        within(settings.places_per_core, 0.1, 1000.0),
        "autoscale.places_per_core",
        "must be between 0.1 and 1000",
    )?;
    rule(within(settings.target, 0.1, 1.0), "autoscale.target", "must be between 0.1 and 1")?;
    rule(
        within(settings.trend_limit, 1.0, 10.0),
        "autoscale.trend_limit",
        "must be between 1 and 10",
    )?;
    for (key, value) in [
        ("autoscale.stable_window", settings.stable_window),
        ("autoscale.scale_in_after", settings.scale_in_after),
        ("autoscale.every", settings.every),
    ] {
        rule(
            (Duration::from_secs(1)..=LONGEST_WINDOW).contains(&value),
            key,
            "must be between `1s` and `1h`",
        )?;
    }
    rule(
        settings.stable_window <= settings.scale_in_after,
        "autoscale.scale_in_after",
        "must not be shorter than `stable_window`",
    )?;
    rule(
        settings.boot_time <= LONGEST_WINDOW,
        "autoscale.boot_time",
        "must not be longer than `1h`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Settings {
        DEFAULTS.read("autoscale", text).unwrap()
    }

    #[test]
    fn nothing_written_is_a_policy_without_a_driver() {
        let config = Config::new(read("{}")).unwrap();
        assert_eq!(config.driver, Driver::None);
        assert_eq!((config.policy.min, config.policy.max), (1, 10));
        assert_eq!(config.lease, Duration::from_secs(30));
        assert_eq!(config.policy.panic_window, Duration::from_secs(6));
    }

    #[test]
    fn the_panic_window_has_a_sample() {
        let text = r#"{"stable_window":"4s","scale_in_after":"4s","every":"1s"}"#;
        let config = Config::new(read(text)).unwrap();
        assert_eq!(config.policy.panic_window, Duration::from_secs(1));
        assert_eq!(config.lease, Duration::from_secs(3));
    }

    #[test]
    fn a_whole_one_is_read() {
        let config = Config::new(read(
            r#"{"driver":"aws-asg","group":"vms","min":2,"max":40,"headroom":16,"place":"512MiB",
                "schedule":[{"days":"mon-fri","from":"08:00","to":"18:00","zone":"Europe/Berlin","at_least":4}]}"#,
        ))
        .unwrap();
        assert!(matches!(config.driver, Driver::AwsAsg { group, .. } if group == "vms"));
        assert_eq!(config.policy.schedule.len(), 1);
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (text, key) in [
            (r#"{"driver":"aws-asg"}"#, "group"),
            (r#"{"driver":"aws-asg","group":" "}"#, "group"),
            (r#"{"driver":"exec"}"#, "command"),
            (r#"{"min":0}"#, "min"),
            (r#"{"min":5,"max":4}"#, "max"),
            (r#"{"place":"1KiB"}"#, "place"),
            (r#"{"places_per_core":0}"#, "places_per_core"),
            (r#"{"target":0}"#, "target"),
            (r#"{"target":1.5}"#, "target"),
            (r#"{"trend_limit":0.5}"#, "trend_limit"),
            (r#"{"stable_window":"2h"}"#, "stable_window"),
            (r#"{"stable_window":"10m"}"#, "scale_in_after"),
            (r#"{"every":"0s"}"#, "every"),
            (
                r#"{"schedule":[{"from":"08:00","to":"18:00","zone":"Mars/Base","at_least":4}]}"#,
                "schedule",
            ),
        ] {
            let err = Config::new(read(text)).unwrap_err();
            assert_eq!(err.key, format!("autoscale.{key}"), "{text}");
        }
    }
}
