//! Notices of the metadata service about the VM's end, each parsed and reported once. Pure.

use epsilon_api::chain::Chain;
use jiff::Timestamp;
use serde::Deserialize;

/// AWS is about to take this VM away, or may do so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A spot VM will be stopped, hibernated or terminated at this time, two minutes after the
    /// notice.
    SpotInterruption {
        /// The time of the interruption.
        at: Timestamp,
    },
    /// A spot VM is more likely than before to be taken soon. Nothing is decided.
    Rebalance,
    /// The Auto Scaling group takes this VM away; a lifecycle hook may be waiting for it to be
    /// ready.
    Terminating,
}

/// The paths at which notices appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Spot,
    Rebalance,
    Lifecycle,
}

/// Ordered by the time that they leave, the shortest first.
pub(super) const SOURCES: [Source; 3] = [Source::Spot, Source::Lifecycle, Source::Rebalance];

impl Source {
    /// The path under `meta-data`.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Spot => "spot/instance-action",
            Self::Rebalance => "events/recommendations/rebalance",
            Self::Lifecycle => "autoscaling/target-lifecycle-state",
        }
    }

    /// Parses the notice in this text, if there is one.
    fn read(self, text: &str) -> Option<Notice> {
        #[derive(Deserialize)]
        struct Action {
            time: Timestamp,
        }
        match self {
            Self::Spot => match serde_json::from_str::<Action>(text) {
                Ok(action) => Some(Notice::SpotInterruption { at: action.time }),
                Err(err) => {
                    // The VM goes all the same; `now` is the safe interpretation.
                    tracing::warn!(error = %Chain(&err), "Spot notice cannot be parsed; draining as if the VM ended now.");
                    Some(Notice::SpotInterruption { at: Timestamp::now() })
                }
            },
            Self::Rebalance => Some(Notice::Rebalance),
            // Other states: InService, Detached, Standby, Warmed:….
            Self::Lifecycle => (text.trim() == "Terminated").then_some(Notice::Terminating),
        }
    }
}

/// The last text of each source.
#[derive(Debug, Default)]
pub(super) struct Seen([Option<String>; SOURCES.len()]);

impl Seen {
    /// Records the current text of a source (`None`: nothing); returns a notice when it is new.
    pub(super) fn update(&mut self, source: Source, text: Option<&str>) -> Option<Notice> {
        let last = &mut self.0[source as usize];
        if last.as_deref() == text {
            return None;
        }
        *last = text.map(str::to_owned);
        source.read(text?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOT: &str = r#"{"action":"terminate","time":"2026-09-18T08:22:00Z"}"#;

    #[test]
    fn notices_are_read() {
        let at = "2026-09-18T08:22:00Z".parse().unwrap();
        for (source, text, want) in [
            (Source::Spot, SPOT, Some(Notice::SpotInterruption { at })),
            (
                Source::Rebalance,
                r#"{"noticeTime":"2026-09-18T08:20:00Z"}"#,
                Some(Notice::Rebalance),
            ),
            (Source::Lifecycle, "Terminated", Some(Notice::Terminating)),
            (Source::Lifecycle, "Terminated\n", Some(Notice::Terminating)),
            (Source::Lifecycle, "InService", None),
            (Source::Lifecycle, "Standby", None),
            (Source::Lifecycle, "Warmed:Stopped", None),
        ] {
            assert_eq!(Seen::default().update(source, Some(text)), want, "{text}");
        }
    }

    #[test]
    fn unreadable_spot_notice_means_now() {
        let now = Timestamp::now();
        let notice = Seen::default().update(Source::Spot, Some("soon"));
        let Some(Notice::SpotInterruption { at }) = notice else { panic!("{notice:?}") };
        assert!(at >= now);
    }

    #[test]
    fn notice_is_reported_once_and_again_after_withdrawal() {
        let mut seen = Seen::default();
        let is_some = |notice: Option<Notice>| notice.is_some();
        for (text, want) in [
            (None, false),
            (Some(SPOT), true),
            (Some(SPOT), false),
            (None, false),
            (Some(SPOT), true),
            (Some(r#"{"action":"stop","time":"2026-09-18T09:00:00Z"}"#), true),
        ] {
            assert_eq!(is_some(seen.update(Source::Spot, text)), want, "{text:?}");
        }
        assert!(is_some(seen.update(Source::Lifecycle, Some("Terminated"))), "sources do not mix");
    }
}
