//! Timing of a call from its answer's `server-timing`: one line in a pipe and for warm calls, a
//! small table with bars for a cold start on a terminal. Called by `invoke.rs`; knows nothing of
//! how calls are made.

use crate::output;
use epsilon_api::headers::SERVER_TIMING;
use http::{HeaderMap, StatusCode};
use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

/// The total of a start's phases. Only cold answers have it, and the table of its parts leaves it
/// out.
const START: &str = "start";
/// Columns of the longest bar: with name and time it fits 60 columns.
const WIDTH: usize = 30;
/// Eighths of a column.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// The phases of one answer, in the header's order.
#[derive(Debug, PartialEq)]
pub(super) struct Timing(Vec<(String, Duration)>);

impl Timing {
    /// Parses `server-timing: queue;dur=0.1, exec;dur=3.2`; other entries are left out.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(SERVER_TIMING).into_iter();
        let texts = values.filter_map(|value| value.to_str().ok());
        let phase = |metric: &str| {
            let (name, rest) = metric.split_once(';')?;
            let dur = rest.split(';').find_map(|param| param.trim().strip_prefix("dur="))?;
            let ms: f64 = dur.parse().ok()?;
            Some((name.trim().to_owned(), Duration::try_from_secs_f64(ms / 1e3).ok()?))
        };
        Self(texts.flat_map(|text| text.split(',')).filter_map(phase).collect())
    }

    /// For `--json`: milliseconds by phase.
    pub(super) fn to_ms(&self) -> BTreeMap<String, f64> {
        let ms = |took: &Duration| (took.as_secs_f64() * 1e6).round() / 1e3;
        self.0.iter().map(|(name, took)| (name.clone(), ms(took))).collect()
    }

    /// Text for people; `took` was measured on this side.
    pub(super) fn describe(&self, status: StatusCode, took: Duration, is_terminal: bool) -> String {
        let whole = output::took(took);
        match self.start() {
            Some(start) if is_terminal => {
                let start = output::took(start);
                format!("{status} in {whole}, with a cold start of {start}{}", self.bars())
            }
            _ if self.0.is_empty() => format!("{status} in {whole}"),
            _ => format!("{status} in {whole} ({})", self.line()),
        }
    }

    /// `queue 0.1 ms, exec 3.2 ms`.
    fn line(&self) -> String {
        let phases = self.0.iter().map(|(name, took)| format!("{name} {}", output::took(*took)));
        phases.collect::<Vec<_>>().join(", ")
    }

    fn start(&self) -> Option<Duration> {
        self.0.iter().find(|(name, _)| name == START).map(|(_, took)| *took)
    }

    /// A line for each phase; the longest phase has the longest bar.
    fn bars(&self) -> String {
        let phases = || self.0.iter().filter(|(name, _)| name != START);
        let longest = phases().map(|(_, took)| *took).max().unwrap_or_default();
        let column = phases().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
        let mut text = String::new();
        for (name, took) in phases() {
            let bar = bar(*took, longest);
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  {name:<column$}  {:>8}  {bar}", output::took(*took));
            text.truncate(text.trim_end().len());
        }
        text
    }
}

/// `part` of [`WIDTH`] columns, to an eighth of a column.
fn bar(part: Duration, longest: Duration) -> String {
    if longest.is_zero() {
        return String::new();
    }
    let share = part.as_secs_f64() / longest.as_secs_f64();
    let eighths = (share * (WIDTH * 8) as f64).round() as usize;
    let rest = EIGHTHS.get(eighths % 8).copied().unwrap_or_default();
    format!("{}{rest}", "█".repeat(eighths / 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn receipt(text: &'static str) -> Timing {
        let mut headers = HeaderMap::new();
        headers.insert(SERVER_TIMING, HeaderValue::from_static(text));
        Timing::of(&headers)
    }

    #[test]
    fn reads_the_gateways_timing_and_skips_the_rest() {
        let read = receipt("queue;dur=0.1, start;desc=\"cold\";dur=180, odd, x;dur=-1, y;dur=NaN");
        let us = Duration::from_micros;
        assert_eq!(read.0, [("queue".to_owned(), us(100)), (START.to_owned(), us(180_000))]);
        assert_eq!(read.to_ms()["queue"], 0.1);
    }

    #[test]
    fn a_warm_call_is_one_line_everywhere() {
        let read = receipt("queue;dur=0.012, exec;dur=1.204");
        for is_terminal in [false, true] {
            let text = read.describe(StatusCode::OK, Duration::from_millis(2), is_terminal);
            assert_eq!(text, "200 OK in 2.0 ms (queue 0.0 ms, exec 1.2 ms)");
        }
    }

    #[test]
    fn a_cold_start_is_a_table_on_a_terminal() {
        let read = receipt(
            "queue;dur=0, start;dur=6.25, layers;dur=0.25, cell;dur=1, init;dur=5, exec;dur=2.5",
        );
        let took = Duration::from_millis(9);
        let text = read.describe(StatusCode::OK, took, true);
        let table = "\
200 OK in 9.0 ms, with a cold start of 6.2 ms
  queue     0.0 ms
  layers    0.2 ms  █▌
  cell      1.0 ms  ██████
  init      5.0 ms  ██████████████████████████████
  exec      2.5 ms  ███████████████";
        assert_eq!(text, table);
        let line = "200 OK in 9.0 ms (queue 0.0 ms, start 6.2 ms, layers 0.2 ms, cell 1.0 ms, init 5.0 ms, exec 2.5 ms)";
        assert_eq!(read.describe(StatusCode::OK, took, false), line);
    }

    #[test]
    fn nothing_is_shown_without_timings() {
        let read = receipt("");
        assert_eq!(read.describe(StatusCode::OK, Duration::from_secs(2), true), "200 OK in 2.0 s");
        assert_eq!(bar(Duration::ZERO, Duration::ZERO), "");
    }
}
