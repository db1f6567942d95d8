//! The table: markdown that reads well in a terminal too, with date and machine.

use jiff::{Zoned, tz::TimeZone};
use std::{fmt::Write, path::Path, process::Command};

/// The marks around a section's table in `benches/README.md`.
fn marks(section: &str) -> [String; 2] {
    [
        format!("<!-- {section}: written by `make bench`, do not edit -->"),
        format!("<!-- /{section} -->"),
    ]
}

/// The median.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The figures of one target of warm calls. Times in microseconds.
#[derive(Debug)]
pub(crate) struct Warm {
    pub(crate) connections: usize,
    pub(crate) name: &'static str,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) rate: f64,
    pub(crate) added_p50: f64,
    pub(crate) rate_ratio: f64,
    /// Calls per second beside HAProxy's, where that is installed.
    pub(crate) proxy_ratio: Option<f64>,
}

/// A line of the table `what | Epsilon | reference | ratio or difference`.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) epsilon: String,
    pub(crate) reference: String,
    pub(crate) ratio: String,
}

/// Deployments.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) changed_ms: f64,
    pub(crate) unchanged_ms: f64,
    /// Packages of the project whose first deployment the next two are about.
    pub(crate) packages: usize,
    pub(crate) packed_ms: f64,
    pub(crate) npm_ms: f64,
}

/// All measurements.
#[derive(Debug, Default)]
pub(crate) struct Report {
    quick: bool,
    warm: Vec<Warm>,
    rows: Vec<Row>,
    push: Option<Push>,
    memory: Option<(u64, u64)>,
}

impl Report {
    pub(crate) fn new(quick: bool) -> Self {
        Self { quick, ..Self::default() }
    }

    pub(crate) fn warm(&mut self, row: Warm) {
        self.warm.push(row);
    }

    /// Rows that need no arithmetic here.
    pub(crate) fn rows(&mut self) -> &mut Vec<Row> {
        &mut self.rows
    }

    pub(crate) fn push(&mut self, row: Push) {
        self.push = Some(row);
    }

    pub(crate) fn memory(&mut self, fresh: u64, after: u64) {
        self.memory = Some((fresh, after));
    }

    /// The table as markdown.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let quick = if self.quick { "A quick run. " } else { "" };
        out.push_str(&heading(&format!("{quick}Medians of turns.")));
        warm_rows(&self.warm, &mut out);
        out.push('\n');
        rows(&self.rows, &mut out);
        if let Some(push) = &self.push {
            writeln!(
                out,
                "| `epsilon deploy` of a one-line change to its first answer | {:.0} ms | | |",
                push.changed_ms
            )
            .unwrap();
            writeln!(
                out,
                "| `epsilon deploy` without a change | {:.0} ms | | {:.2}× of a change |",
                push.unchanged_ms,
                push.unchanged_ms / push.changed_ms
            )
            .unwrap();
            writeln!(
                out,
                "| `epsilon deploy` of {} npm packages that were not installed before | {:.0} ms | {:.0} ms: npm's own, \
                 same image, flags and cache | {:+.0} ms |",
                push.packages,
                push.packed_ms,
                push.npm_ms,
                push.packed_ms - push.npm_ms
            )
            .unwrap();
        }
        if let Some((fresh, after)) = self.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            writeln!(
                out,
                "| memory of `epsilon up`, idle (gateway, agent and builder in one process) | {:.1} MiB fresh, \
                 {:.1} MiB after all of the above | | |",
                mib(fresh),
                mib(after)
            )
            .unwrap();
        }
        out
    }
}

/// Date and machine, and a note about the figures.
pub(crate) fn heading(word: &str) -> String {
    let date = Zoned::now().with_time_zone(TimeZone::UTC).strftime("%Y-%m-%d").to_string();
    format!("{date}, {}. {word}\n\n", machine())
}

/// The table of warm calls.
pub(crate) fn warm_rows(rows: &[Warm], out: &mut String) {
    writeln!(
        out,
        "| warm call | connections | p50 | p99 | calls/s | p50 − socket's p50 | calls/s ÷ socket's | calls/s ÷ HAProxy's |"
    )
    .unwrap();
    writeln!(out, "|---|---:|---:|---:|---:|---:|---:|---:|").unwrap();
    for row in rows {
        let proxy_ratio = row.proxy_ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}×"));
        writeln!(
            out,
            "| {} | {} | {:.0} µs | {:.0} µs | {:.0} | {:+.0} µs | {:.2}× | {proxy_ratio} |",
            row.name, row.connections, row.p50, row.p99, row.rate, row.added_p50, row.rate_ratio
        )
        .unwrap();
    }
}

/// A table of rows.
pub(crate) fn rows(rows: &[Row], out: &mut String) {
    writeln!(out, "| what | Epsilon | reference | ratio or difference |").unwrap();
    writeln!(out, "|---|---:|---:|---:|").unwrap();
    for Row { what, epsilon, reference, ratio } in rows {
        writeln!(out, "| {what} | {epsilon} | {reference} | {ratio} |").unwrap();
    }
}

/// The machine in a few words.
fn machine() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let said = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().map_or_else(
            |_| "?".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let release = said("uname", &["-r"]);
    // What a distributor appends does not affect speed.
    let kernel = release.split('-').next().unwrap_or("?");
    let engine = said("docker", &["version", "--format", "{{.Server.Version}}"]);
    // Readers have to know the machine's other load.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!("{model}, {cores} cores (load {load}), Linux {kernel}, Docker {engine}")
}

/// Puts the table between the section's marks in `benches/README.md`.
pub(crate) fn write(section: &str, table: &str) {
    let [begin, end] = marks(section);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(&begin).expect("the mark where the table begins");
    let (_, after) = rest.split_once(&end).expect("the mark where the table ends");
    std::fs::write(&path, format!("{before}{begin}\n{table}{end}{after}")).unwrap();
    eprintln!("written to {}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([1.0]), 1.0);
    }

    #[test]
    fn the_readme_has_the_marks() {
        let text = include_str!("../README.md");
        for section in
            ["measured", "cold", "assignments", "fleet", "autoscaling", "keepalive", "placement"]
        {
            assert!(marks(section).iter().all(|mark| text.contains(mark)), "{section}");
        }
    }
}
