//! Settings of the autoscaler as an operator writes them ([`Settings`], `gateway.autoscale` in the
//! settings file), and their checked form ([`Config`]). Every number used by the policy and the
//! loop is here with its reason; `docs/autoscaling.md` explains their effect.

use super::schedule::{Window, WindowSettings};
use crate::config::invalid::ConfigError;
use epsilon_api::serde_text;
use epsilon_api::units::Bytes;
use serde::Deserialize;
use std::time::Duration;

/// The mapping `gateway.autoscale`. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Which system creates and terminates VMs: `none` (the wanted count is only shown), `exec` (a
    /// command) or `aws-asg` (an EC2 Auto Scaling group). Default `none`.
    pub driver: DriverKind,
    /// Name of the Auto Scaling group; required for `aws-asg`. Default: none.
    pub group: Option<String>,
    /// AWS region of the group. Default: as the AWS SDK determines it (`AWS_REGION`, the instance's
    /// own).
    pub region: Option<String>,
    /// Endpoint of the Auto Scaling API, for private endpoints. Default: AWS's own.
    pub endpoint: Option<String>,
    /// The command of `exec` with its first arguments; the wanted count is appended as the last
    /// one. Default: none.
    pub command: Vec<String>,
    /// Longest run time of the command; then it is killed and retried later. Default `60s`: clouds
    /// accept an order for a machine within seconds.
    #[serde(deserialize_with = "serde_text::duration")]
    pub command_timeout: Duration,
    /// Only report the steps, in the log and in `epsilon autoscaler`. Default `false`.
    pub dry_run: bool,
    /// Fewest VMs of the group. Default 1: one VM has to take the first call.
    pub min: u32,
    /// Most VMs of the group: limits the cost of a runaway. Default 10.
    pub max: u32,
    /// Minimums for known peaks: `[{ days: mon-fri, from: "08:00", to: "18:00", zone:
    /// Europe/Berlin, at_least: 4 }]`. `days` is a list of days and ranges (default: all), `to` may
    /// be after midnight. Default: none.
    pub schedule: Vec<WindowSettings>,
    /// Memory of one place, the unit of the policy: a busy instance takes as many places as its
    /// memory needs, at least one. Default `256MiB`: the default memory of a function.
    #[serde(deserialize_with = "serde_text::text")]
    pub place: Bytes,
    /// Places that one core of a VM can serve; a VM has as many as both its memory and its cores
    /// allow. Default 8: functions mostly wait for other systems. Set 1 to 2 for functions that
    /// compute.
    pub places_per_core: f64,
    /// Share of its places that a VM should use. Default 0.75: absorbs fluctuations of a third.
    pub target: f64,
    /// Places kept free beyond the busy ones: room for a spike until more VMs are ready, paid for
    /// at all times. Places that `target` keeps free count as well. Default 4: single calls find
    /// room in a small fleet.
    pub headroom: u32,
    /// Demand is averaged over this window. Default `60s`: longer than usual fluctuations, shorter
    /// than the boot of a VM.
    #[serde(deserialize_with = "serde_text::duration")]
    pub stable_window: Duration,
    /// When every place is taken, demand is averaged over this window. Default `6s`, a tenth of the
    /// stable one: reacts to jumps at once, but not to a single second.
    #[serde(deserialize_with = "serde_text::duration")]
    pub panic_window: Duration,
    /// Share of all places in use (waiting calls included) over the panic window from which the
    /// panic window applies. Default 1: calls begin to wait.
    pub panic_at: f64,
    /// Time from the order of a VM to its first call. Schedules begin earlier by this time, and the
    /// trend looks ahead by it. Default `90s`: the time of an EC2 instance with a prepared image.
    #[serde(deserialize_with = "serde_text::duration")]
    pub boot_time: Duration,
    /// The trend may ask for at most this many times the present demand; 1 turns it off. Default
    /// 1.25: a line through a jump overestimates by far.
    pub trend_limit: f64,
    /// Most VMs ordered beyond those that serve; a schedule or minimum may order more. Default 10:
    /// a wave of calls caused by one bug does not order a hundred.
    pub starting_at_once: u32,
    /// Fewer VMs are wanted only after fewer were enough for this long. Default `5m`: a VM takes
    /// its boot time to come back. Not shorter than `stable_window`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub scale_in_after: Duration,
    /// Largest share of the group's VMs that leave at the same time, at least one VM. Default 0.1.
    pub leaving_share: f64,
    /// Longest time for a leaving VM to finish its running calls; then it is terminated with them.
    /// Default `15m`: longer than the timeouts of most functions. Not shorter than your functions'
    /// longest `timeout`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub leave_grace: Duration,
    /// How often the group is queried. Scale-out is not delayed by it. Default `10s`: six requests
    /// per minute are far below AWS's limits.
    #[serde(deserialize_with = "serde_text::duration")]
    pub every: Duration,
    /// How long a gateway stays the leader without renewing its lease. Default `30s`: three rounds
    /// of `every`. Longer than `every`.
    #[serde(deserialize_with = "serde_text::duration")]
    pub lease: Duration,
    /// Decisions that are stored for `epsilon autoscaler`. Default 100.
    pub decisions: usize,
}

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

impl Default for Settings {
    fn default() -> Self {
        Self {
            driver: DriverKind::None,
            group: None,
            region: None,
            endpoint: None,
            command: Vec::new(),
            command_timeout: Duration::from_secs(60),
            dry_run: false,
            min: 1,
            max: 10,
            schedule: Vec::new(),
            place: Bytes::mib(256),
            places_per_core: 8.0,
            target: 0.75,
            headroom: 4,
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            panic_at: 1.0,
            boot_time: Duration::from_secs(90),
            trend_limit: 1.25,
            starting_at_once: 10,
            scale_in_after: Duration::from_secs(300),
            leaving_share: 0.1,
            leave_grace: Duration::from_secs(15 * 60),
            every: Duration::from_secs(10),
            lease: Duration::from_secs(30),
            decisions: 100,
        }
    }
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
                Driver::Exec { command: settings.command, timeout: settings.command_timeout }
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
            leaving_share: settings.leaving_share,
            leave_grace: settings.leave_grace,
            every: settings.every,
            lease: settings.lease,
            decisions: settings.decisions,
            policy: PolicyConfig {
                min: settings.min,
                max: settings.max,
                schedule,
                target: settings.target,
                headroom: settings.headroom,
                stable_window: settings.stable_window,
                panic_window: settings.panic_window,
                panic_at: settings.panic_at,
                boot_time: settings.boot_time,
                trend_limit: settings.trend_limit,
                starting_at_once: settings.starting_at_once,
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
    let rule = |holds: bool, key, rule: &'static str| {
        if holds { Ok(()) } else { Err(ConfigError { key, rule: rule.into() }) }
    };
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
    rule(within(settings.panic_at, 0.1, 10.0), "autoscale.panic_at", "must be between 0.1 and 10")?;
    rule(
        within(settings.trend_limit, 1.0, 10.0),
        "autoscale.trend_limit",
        "must be between 1 and 10",
    )?;
    rule(
        within(settings.leaving_share, 0.0, 1.0),
        "autoscale.leaving_share",
        "must be between 0 and 1",
    )?;
    rule(settings.starting_at_once >= 1, "autoscale.starting_at_once", "must be at least 1")?;
    rule(
        (1..=10_000).contains(&settings.decisions),
        "autoscale.decisions",
        "must be between 1 and 10000",
    )?;
    for (key, value) in [
        ("autoscale.stable_window", settings.stable_window),
        ("autoscale.panic_window", settings.panic_window),
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
        settings.panic_window <= settings.stable_window,
        "autoscale.panic_window",
        "must not be longer than `stable_window`",
    )?;
    rule(
        settings.stable_window <= settings.scale_in_after,
        "autoscale.scale_in_after",
        "must not be shorter than `stable_window`",
    )?;
    rule(
        settings.boot_time <= LONGEST_WINDOW,
        "autoscale.boot_time",
        "must not be longer than `1h`",
    )?;
    rule(settings.lease > settings.every, "autoscale.lease", "must be longer than `every`")?;
    rule(
        !settings.command_timeout.is_zero(),
        "autoscale.command_timeout",
        "must be longer than `0s`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Settings {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn nothing_written_is_a_policy_without_a_driver() {
        let config = Config::new(read("{}")).unwrap();
        assert_eq!(config.driver, Driver::None);
        assert_eq!((config.policy.min, config.policy.max), (1, 10));
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
            (r#"{"leaving_share":2}"#, "leaving_share"),
            (r#"{"starting_at_once":0}"#, "starting_at_once"),
            (r#"{"panic_window":"2m"}"#, "panic_window"),
            (r#"{"stable_window":"2h"}"#, "stable_window"),
            (r#"{"stable_window":"10m"}"#, "scale_in_after"),
            (r#"{"every":"1m"}"#, "lease"),
            (r#"{"every":"0s"}"#, "every"),
            (r#"{"command_timeout":"0s"}"#, "command_timeout"),
            (r#"{"decisions":0}"#, "decisions"),
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
