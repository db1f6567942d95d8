//! Windows as tables: the window, a time, and whether its minimum applies then.

use super::*;

fn window(text: &str) -> Window {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [days, from, to, zone] = parts[..] else { panic!("{text}") };
    WindowSettings {
        days: Some(days.into()),
        from: from.into(),
        to: to.into(),
        zone: zone.into(),
        at_least: 4,
    }
    .check()
    .unwrap()
}

/// Each row is a test: window, time (RFC 3339) => whether it applies.
macro_rules! windows {
    ($($name:ident: $window:literal at $now:literal => $want:literal;)*) => {$(
        #[test]
        fn $name() {
            let now: Timestamp = $now.parse().unwrap();
            assert_eq!(window($window).holds(now, Duration::ZERO), $want);
        }
    )*};
}

windows! {
    // 2026-11-20 is a Friday.
    begins_on_the_minute:        "mon-fri 08:00 18:00 Europe/Berlin" at "2026-11-20T08:00:00+01:00" => true;
    not_before_it_begins:        "mon-fri 08:00 18:00 Europe/Berlin" at "2026-11-20T07:59:59+01:00" => false;
    ends_on_the_minute:          "mon-fri 08:00 18:00 Europe/Berlin" at "2026-11-20T18:00:00+01:00" => false;
    holds_until_its_end:         "mon-fri 08:00 18:00 Europe/Berlin" at "2026-11-20T17:59:59+01:00" => true;
    not_on_other_days:           "mon-fri 08:00 18:00 Europe/Berlin" at "2026-11-21T09:00:00+01:00" => false;
    a_list_of_days:              "mon,sat 08:00 18:00 Europe/Berlin" at "2026-11-21T09:00:00+01:00" => true;
    over_the_weeks_end:          "sat-mon 08:00 18:00 UTC" at "2026-11-22T09:00:00Z" => true;
    not_outside_a_wrapped_range: "sat-mon 08:00 18:00 UTC" at "2026-11-24T09:00:00Z" => false;
    over_midnight_before:        "fri 22:00 02:00 UTC" at "2026-11-20T23:00:00Z" => true;
    over_midnight_after:         "fri 22:00 02:00 UTC" at "2026-11-21T01:59:59Z" => true;
    over_midnight_is_over:       "fri 22:00 02:00 UTC" at "2026-11-21T02:00:00Z" => false;
    over_midnight_other_day:     "fri 22:00 02:00 UTC" at "2026-11-20T01:00:00Z" => false;
    a_whole_day:                 "fri 00:00 24:00 UTC" at "2026-11-20T23:59:59Z" => true;
    a_whole_day_is_over:         "fri 00:00 24:00 UTC" at "2026-11-21T00:00:00Z" => false;
    the_zones_day_counts:        "sat 00:00 24:00 Asia/Tokyo" at "2026-11-20T15:00:00Z" => true;
    summer:                      "daily 08:00 18:00 Europe/Berlin" at "2026-07-01T06:00:00Z" => true;
    winter:                      "daily 08:00 18:00 Europe/Berlin" at "2026-12-01T06:30:00Z" => false;
    // Clocks in Berlin go from 02:00 to 03:00 on 2026-03-29, at 01:00 UTC.
    the_day_of_the_change_begins: "daily 08:00 18:00 Europe/Berlin" at "2026-03-29T06:00:00Z" => true;
    the_day_before_it:           "daily 08:00 18:00 Europe/Berlin" at "2026-03-28T06:59:59Z" => false;
    from_in_the_gap_not_yet:     "daily 02:30 04:00 Europe/Berlin" at "2026-03-29T01:29:59Z" => false;
    from_in_the_gap:             "daily 02:30 04:00 Europe/Berlin" at "2026-03-29T01:30:00Z" => true;
    to_in_the_gap:               "daily 01:00 02:30 Europe/Berlin" at "2026-03-29T01:29:59Z" => true;
    to_in_the_gap_is_over:       "daily 01:00 02:30 Europe/Berlin" at "2026-03-29T01:30:00Z" => false;
    over_the_gap:                "sat 22:00 06:00 Europe/Berlin" at "2026-03-29T03:59:59Z" => true;
    over_the_gap_is_over:        "sat 22:00 06:00 Europe/Berlin" at "2026-03-29T04:00:00Z" => false;
    // And back from 03:00 to 02:00 on 2026-10-25, at 01:00 UTC.
    from_twice_begins_first:     "daily 02:30 06:00 Europe/Berlin" at "2026-10-25T00:30:00Z" => true;
    from_twice_not_before:       "daily 02:30 06:00 Europe/Berlin" at "2026-10-25T00:29:59Z" => false;
    to_twice_ends_last:          "daily 01:00 02:30 Europe/Berlin" at "2026-10-25T01:29:59Z" => true;
    to_twice_is_over:            "daily 01:00 02:30 Europe/Berlin" at "2026-10-25T01:30:00Z" => false;
    over_the_fold:               "sat 22:00 06:00 Europe/Berlin" at "2026-10-25T04:59:59Z" => true;
    half_hour_zones:             "daily 09:00 10:00 Asia/Kolkata" at "2026-11-20T03:30:00Z" => true;
    half_hour_change:            "daily 09:00 10:00 Australia/Lord_Howe" at "2026-10-04T22:00:00Z" => true;
}

#[test]
fn it_begins_ahead_by_the_boot_of_a_vm() {
    let window = window("mon 00:01 06:00 Europe/Berlin");
    let ahead = Duration::from_secs(90);
    // Sunday 23:59:30: the window of the next day.
    assert!(window.holds("2026-11-22T23:59:30+01:00".parse().unwrap(), ahead));
    assert!(!window.holds("2026-11-22T23:59:29+01:00".parse().unwrap(), ahead));
    // The end is not moved.
    assert!(!window.holds("2026-11-23T06:00:00+01:00".parse().unwrap(), ahead));
}

#[test]
fn the_largest_minimum_wins() {
    let mut small = window("daily 00:00 24:00 UTC");
    let mut large = window("daily 10:00 11:00 UTC");
    (small.at_least, large.at_least) = (2, 9);
    let windows = [large, small];
    let vms = |now: &str| at_least(&windows, now.parse().unwrap(), Duration::ZERO).unwrap().vms;
    assert_eq!((vms("2026-11-20T10:30:00Z"), vms("2026-11-20T12:00:00Z")), (9, 2));
}

#[test]
fn invalid_windows_are_reported() {
    let good = WindowSettings {
        days: None,
        from: "08:00".into(),
        to: "18:00".into(),
        zone: "UTC".into(),
        at_least: 1,
    };
    let refused = |change: &dyn Fn(&mut WindowSettings)| {
        let mut window = good.clone();
        change(&mut window);
        window.check().unwrap_err()
    };
    assert!(good.check().is_ok());
    assert!(refused(&|w| w.days = Some("monday".into())).contains("`mon-fri`"));
    assert!(refused(&|w| w.days = Some(String::new())).contains("`mon-fri`"));
    assert!(refused(&|w| w.from = "8".into()).contains("`08:00`"));
    assert!(refused(&|w| w.from = "8:00".into()).contains("`08:00`"));
    assert!(refused(&|w| w.to = "24:01".into()).contains("`08:00`"));
    assert!(refused(&|w| w.to = "12:60".into()).contains("`08:00`"));
    assert!(refused(&|w| w.zone = "CEST".into()).contains("`Europe/Berlin`"));
    assert!(refused(&|w| w.at_least = 0).contains("at_least"));
}
