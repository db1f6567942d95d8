//! What the metadata service says of the VM's end, read and told once each. Pure.

use jiff::Timestamp;
use serde::Deserialize;

/// AWS is about to take this VM, or may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A spot VM goes: stopped, hibernated or terminated at this time, two minutes after the notice.
    SpotInterruption {
        /// When.
        at: Timestamp,
    },
    /// A spot VM is more likely than before to be taken soon. Nothing has been decided.
    Rebalance,
    /// The Auto Scaling group takes this VM away; a lifecycle hook may be waiting for it to be ready.
    Terminating,
}

/// The places where notices stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Spot,
    Rebalance,
    Lifecycle,
}

/// In the order of how little time they leave.
pub(super) const SOURCES: [Source; 3] = [Source::Spot, Source::Lifecycle, Source::Rebalance];

impl Source {
    /// Under `meta-data`.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Spot => "spot/instance-action",
            Self::Rebalance => "events/recommendations/rebalance",
            Self::Lifecycle => "autoscaling/target-lifecycle-state",
        }
    }

    /// The notice in this text, if it is one.
    fn read(self, text: &str) -> Option<Notice> {
        #[derive(Deserialize)]
        struct Action {
            time: Timestamp,
        }
        match self {
            Self::Spot => match serde_json::from_str::<Action>(text) {
                Ok(action) => Some(Notice::SpotInterruption { at: action.time }),
                Err(err) => {
                    // The VM goes all the same; at once is the safe reading.
                    tracing::warn!(cause = %err, "A spot notice cannot be read; taken as `now`.");
                    Some(Notice::SpotInterruption { at: Timestamp::now() })
                }
            },
            Self::Rebalance => Some(Notice::Rebalance),
            // Other states: InService, Detached, Standby, Warmed:….
            Self::Lifecycle => (text.trim() == "Terminated").then_some(Notice::Terminating),
        }
    }
}

/// What each source said last.
#[derive(Debug, Default)]
pub(super) struct Seen([Option<String>; SOURCES.len()]);

impl Seen {
    /// Takes what a source says now (`None`: nothing); gives a notice when it is news.
    pub(super) fn hear(&mut self, source: Source, text: Option<&str>) -> Option<Notice> {
        let said = &mut self.0[source as usize];
        if said.as_deref() == text {
            return None;
        }
        *said = text.map(str::to_owned);
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
            assert_eq!(Seen::default().hear(source, Some(text)), want, "{text}");
        }
    }

    #[test]
    fn a_spot_notice_that_cannot_be_read_means_now() {
        let now = Timestamp::now();
        let heard = Seen::default().hear(Source::Spot, Some("soon"));
        let Some(Notice::SpotInterruption { at }) = heard else { panic!("{heard:?}") };
        assert!(at >= now);
    }

    #[test]
    fn a_notice_is_told_once_and_again_after_it_was_taken_back() {
        let mut seen = Seen::default();
        let told = |notice: Option<Notice>| notice.is_some();
        for (text, want) in [
            (None, false),
            (Some(SPOT), true),
            (Some(SPOT), false),
            (None, false),
            (Some(SPOT), true),
            (Some(r#"{"action":"stop","time":"2026-09-18T09:00:00Z"}"#), true),
        ] {
            assert_eq!(told(seen.hear(Source::Spot, text)), want, "{text:?}");
        }
        assert!(told(seen.hear(Source::Lifecycle, Some("Terminated"))), "sources do not mix");
    }
}
