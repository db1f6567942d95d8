//! `make bench ARGS=keepalive`: a week of calls through keep-alive policies: fixed times, the
//! agent's own adaptive one (`vm-agent/src/keepalive/`), and none at all, where each call is a cold
//! start in a cell. Then a VM with too little memory: which instance is evicted first.
//!
//! The replay is deterministic: the same numbers on every machine. Not modelled: concurrent calls
//! of one function (the paper's replay has none either), and more than one VM.
//!
//! | module | what it is |
//! |---|---|
//! | [`trace`] | functions and their calls, in the shape of the published figures |
//! | [`policies`] | how long an instance stays, one function at a time |
//! | [`pressure`] | which instance is evicted when memory is needed |

mod policies;
mod pressure;
mod trace;

use policies::Policy;
use std::fmt::Write;
use trace::{Function, HOURS};

/// Runs all of it; returns the tables as markdown.
pub(crate) fn table() -> String {
    let functions = trace::functions();
    let mut out = String::from(
        "| keep-alive | cold calls | share of a function's calls, median | p75 | idle memory | of fixed 10 min | waited for starts from images | in cells |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let results = Policy::ALL.map(|policy| (policy, policies::run(&functions, policy)));
    let ten = results.iter().find(|(policy, _)| *policy == Policy::Fixed(10));
    let ten = ten.map_or(1.0, |(_, outcome)| outcome.idle_gib_hours);
    for (policy, outcome) in &results {
        writeln!(
            out,
            "| {} | {} | {:.1} % | {:.1} % | {:.0} GiB·h | {:.2}× | {:.1} h | {:.1} h |",
            policy.name(),
            outcome.cold,
            100.0 * outcome.quartile(2),
            100.0 * outcome.quartile(3),
            outcome.idle_gib_hours,
            outcome.idle_gib_hours / ten,
            outcome.waited_images / 3600.0,
            outcome.waited_cells / 3600.0,
        )
        .unwrap();
    }
    writeln!(
        out,
        "\n| memory for instances | goes first | cold calls | share of a function's calls, median | waited for starts in cells |\n|---:|---|---:|---:|---:|"
    )
    .unwrap();
    for gib in [4, 8, 16] {
        for order in pressure::Order::ALL {
            let outcome = pressure::run(&functions, order, gib << 30);
            writeln!(
                out,
                "| {gib} GiB | {} | {} | {:.1} % | {:.1} h |",
                order.name(),
                outcome.cold,
                100.0 * outcome.quartile(2),
                outcome.waited_cells / 3600.0,
            )
            .unwrap();
        }
    }
    let calls: u64 = functions.iter().flat_map(Function::calls).map(|call| call.count).sum();
    writeln!(
        out,
        "\n{} functions, {:.1} million calls in {HOURS} hours.",
        functions.len(),
        calls as f64 / 1e6
    )
    .unwrap();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapting_has_fewer_cold_starts_for_its_memory() {
        let functions = trace::functions();
        let [five, ten, twenty, hour, adaptive, none] =
            Policy::ALL.map(|policy| policies::run(&functions, policy));
        assert!(five.cold > ten.cold && ten.cold > twenty.cold && twenty.cold > hour.cold);
        assert!(adaptive.cold < twenty.cold / 2, "{} {}", adaptive.cold, twenty.cold);
        assert!(adaptive.idle_gib_hours < hour.idle_gib_hours);
        assert!(adaptive.quartile(2) < hour.quartile(2));
        assert!(adaptive.quartile(3) < hour.quartile(3));
        assert_eq!((none.cold, none.calls), (none.calls, adaptive.calls));
    }

    #[test]
    fn under_pressure_worth_beats_age() {
        let functions = trace::functions();
        let [age, worth] =
            pressure::Order::ALL.map(|order| pressure::run(&functions, order, 8 << 30));
        assert!(worth.waited_cells < age.waited_cells);
    }

    #[test]
    fn trace_has_published_shape_and_is_deterministic() {
        let functions = trace::functions();
        let share = |holds: &dyn Fn(&Function) -> bool| {
            functions.iter().filter(|function| holds(function)).count() as f64
                / functions.len() as f64
        };
        let hourly = share(&|function| function.per_day <= 24.0);
        let each_minute = share(&|function| function.per_day <= 1440.0);
        assert!((0.40..0.50).contains(&hourly), "{hourly}");
        assert!((0.76..0.86).contains(&each_minute), "{each_minute}");
        let small = share(&|function| function.memory <= 170 << 20);
        assert!((0.45..0.55).contains(&small), "{small}");
        let rates = functions.iter().map(|function| function.per_day.log10());
        let (least, most) =
            rates.fold((9.0_f64, -9.0_f64), |(a, b), rate| (a.min(rate), b.max(rate)));
        assert!(most - least > 7.5, "{least} {most}");
        assert_eq!(functions[7].calls().count(), trace::functions()[7].calls().count());
    }
}
