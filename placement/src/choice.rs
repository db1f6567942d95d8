//! Chooses the VM for a call from the function's walk over the ring. Pure: the caller passes in the
//! state of each VM; nothing is sent, counted or stored.
//!
//! A VM with a penalty ([`Penalty`]) is passed over. If every VM has one, the VM with the lowest
//! penalty is chosen, so a call is refused only if every VM drains.
//!
//! **Equals** are the first [`EQUALS`] VMs of the walk without a penalty: usually home
//! and its two neighbours; for a function that has filled five VMs, the sixth and two more. Among
//! them the first with a free warm instance gets the call, else the first that has the image, else
//! the first. So a function grows along its walk, returns along it when calls get fewer (home is
//! tried first and the last VM's instances age out), and never spreads further than it has to.
//!
//! **Above the bound**, avoiding a cold start counts for more than balance: a call never waits for
//! a start while a free warm instance exists. So a VM at its bound with a warm instance is passed
//! over only for an equal that has one, too. The best of the equals is prewarmed in the background
//! ([`Prewarm::StartInstance`]) and takes later calls once it is warm.
//!
//! | | warm and free | has the image | has nothing |
//! |---|---|---|---|
//! | no penalty | 1st | 3rd | 4th |
//! | at its bound | 2nd, the least loaded | 5th, the least loaded | 5th |

/// How many VMs count as equals. Large enough to find the instance that a surge left on a
/// neighbour, small enough that a function does not become warm everywhere.
const EQUALS: u32 = 3;

/// Reasons not to choose a VM, from the least to the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Penalty {
    /// No reason.
    Nothing,
    /// It carries as many calls as its bound allows.
    Bound,
    /// Its report stream broke a moment ago: it may be gone, or its agent restarts.
    Suspect,
    /// No room for this function: the VM refused it, or its report shows it. The call may wait
    /// there.
    Room,
    /// This function failed there several times in a row, through no fault of its own.
    Breaker,
    /// It does not answer. Chosen only if no VM answers: then the fault may be this gateway's
    /// network.
    Out,
    /// It drains. Never chosen.
    Drain,
}

impl Penalty {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Bound, Self::Suspect, Self::Room, Self::Breaker, Self::Out, Self::Drain];

    /// The metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Bound => "bound",
            Self::Suspect => "suspect",
            Self::Room => "room",
            Self::Breaker => "breaker",
            Self::Out => "out",
            Self::Drain => "drain",
        }
    }
}

/// What a VM has of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Locality {
    /// An instance with a free concurrency slot.
    Warm,
    /// The image.
    Image,
    /// Nothing, as far as is known.
    Nothing,
}

/// The state of one VM for one call.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The VM's penalty; `Nothing` if it has none.
    pub penalty: Penalty,
    /// What it has of the version.
    pub locality: Locality,
    /// Calls per share; decides which VM is the least loaded when all are at their bounds.
    pub load_ratio: u64,
    /// This call was already tried there.
    pub tried: bool,
}

/// The VM chosen for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index of the VM.
    pub vm: usize,
    /// Position in the walk; 0 is home.
    pub step: u32,
    /// The penalty of the chosen VM; `Nothing` if it has none.
    pub penalty: Penalty,
    /// What it has of the version.
    pub locality: Locality,
    /// Whether a retry on another VM is worthwhile if this one refuses.
    pub more: bool,
    /// The prewarm to start in the background, and the index of its VM.
    pub prewarm: Option<(Prewarm, usize)>,
}

/// What a VM is prepared with before calls go there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prewarm {
    /// The image: a VM earlier in the walk than the chosen one lacks nothing else.
    PullImage,
    /// An instance: the chosen VM is over its bound, and this one is not.
    StartInstance,
}

/// Chooses a VM. `walk` yields each VM once, home first; `has_other_vms`: more than one VM takes
/// calls; `look` returns the state of a VM; `on_passed_over` is called with each reason for which a
/// VM was passed over.
///
/// A warm home is the usual case, and then no other VM is looked at: each look reads memory that is
/// not in the CPU's caches.
pub fn choose(
    walk: impl Iterator<Item = usize>,
    has_other_vms: bool,
    mut look: impl FnMut(usize) -> Candidate,
    mut on_passed_over: impl FnMut(Penalty),
) -> Option<Choice> {
    let mut best: Option<(Key, Choice)> = None;
    let mut equals = 0;
    let mut retry_candidates = 0_u32;
    let mut out = 0_u32;
    let mut any_responds = false;
    let (mut first_without_image, mut best_equal): (_, Option<(Key, usize)>) = (None, None);
    for (vm, step) in walk.zip(0_u32..) {
        let Candidate { penalty, locality, load_ratio, tried } = look(vm);
        if penalty != Penalty::Nothing && !tried {
            on_passed_over(penalty);
        }
        any_responds |= penalty < Penalty::Out;
        if tried || penalty == Penalty::Drain {
            continue;
        }
        retry_candidates += u32::from(penalty < Penalty::Room);
        out += u32::from(penalty == Penalty::Out);
        let key = Key { rank: Rank::of(penalty, locality, load_ratio), step };
        if penalty == Penalty::Nothing {
            equals += 1;
            if locality == Locality::Nothing && first_without_image.is_none() {
                first_without_image = Some((step, vm));
            }
            if best_equal.as_ref().is_none_or(|(least, _)| key < *least) {
                best_equal = Some((key, vm));
            }
        }
        if best.as_ref().is_none_or(|(least, _)| key < *least) {
            let choice = Choice { vm, step, penalty, locality, more: false, prewarm: None };
            best = Some((key, choice));
        }
        if penalty == Penalty::Nothing && locality == Locality::Warm {
            // No earlier VM was a warm equal, or the walk would have ended there.
            retry_candidates += u32::from(has_other_vms);
            break;
        }
        if equals == EQUALS {
            break;
        }
    }
    let (_, mut choice) = best?;
    if choice.penalty == Penalty::Out {
        choice.more = out > 1;
        // If any VM answers, it has already had the call: returning its refusal is better than
        // waiting for a VM that is out.
        return (!any_responds).then_some(choice);
    }
    choice.more = choice.penalty < Penalty::Room && retry_candidates > 1;
    choice.prewarm = match (choice.penalty, choice.locality) {
        (Penalty::Bound, Locality::Warm) => best_equal.map(|(_, vm)| (Prewarm::StartInstance, vm)),
        (_, Locality::Image) => first_without_image
            .filter(|(step, _)| *step < choice.step)
            .map(|(_, vm)| (Prewarm::PullImage, vm)),
        (_, Locality::Warm | Locality::Nothing) => None,
    };
    Some(choice)
}

/// The order of preference: the smallest key wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    rank: Rank,
    step: u32,
}

/// The table of the module, followed by the VMs with higher penalties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Warm,
    /// Warm but beyond its bound, with its load ratio.
    WarmOverBound(u64),
    Image,
    Empty,
    OverBound(u64),
    Penalised(Penalty),
}

impl Rank {
    fn of(penalty: Penalty, locality: Locality, load_ratio: u64) -> Self {
        match (penalty, locality) {
            (Penalty::Nothing, Locality::Warm) => Self::Warm,
            (Penalty::Nothing, Locality::Image) => Self::Image,
            (Penalty::Nothing, Locality::Nothing) => Self::Empty,
            (Penalty::Bound, Locality::Warm) => Self::WarmOverBound(load_ratio),
            (Penalty::Bound, Locality::Image | Locality::Nothing) => Self::OverBound(load_ratio),
            (
                Penalty::Suspect | Penalty::Room | Penalty::Breaker | Penalty::Out | Penalty::Drain,
                _,
            ) => Self::Penalised(penalty),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VM in a table: its penalty, with what it has: `.` nothing, `i` image, `w` warm.
    /// A number is the load ratio of a VM at its bound that has the image; with `w` after it, it is
    /// warm. A `!` after it: already tried.
    fn look(text: &str) -> Candidate {
        let (text, tried) = text.strip_suffix('!').map_or((text, false), |text| (text, true));
        let (penalty, locality, load_ratio) = match text {
            "." => (Penalty::Nothing, Locality::Nothing, 0),
            "i" => (Penalty::Nothing, Locality::Image, 0),
            "w" => (Penalty::Nothing, Locality::Warm, 0),
            "suspect" => (Penalty::Suspect, Locality::Warm, 0),
            "room" => (Penalty::Room, Locality::Image, 0),
            "breaker" => (Penalty::Breaker, Locality::Warm, 0),
            "out" => (Penalty::Out, Locality::Warm, 0),
            "drain" => (Penalty::Drain, Locality::Warm, 0),
            load_ratio => {
                let warm = load_ratio.strip_suffix('w');
                let locality = if warm.is_some() { Locality::Warm } else { Locality::Image };
                (Penalty::Bound, locality, warm.unwrap_or(load_ratio).parse().unwrap())
            }
        };
        Candidate { penalty, locality, load_ratio, tried }
    }

    fn has_other_vms(looks: &[Candidate]) -> bool {
        looks.iter().filter(|look| look.penalty < Penalty::Out && !look.tried).count() > 1
    }

    /// The walk's VMs as [`look`] parses them => the step that is chosen, `+` if a retry is
    /// worthwhile.
    macro_rules! choices {
        ($($name:ident: $walk:expr => $want:expr;)*) => {$(
            #[test]
            fn $name() {
                let looks: Vec<Candidate> = $walk.split_whitespace().map(look).collect();
                let choice = choose(0..looks.len(), has_other_vms(&looks), |vm| looks[vm], |_| ());
                let chosen = choice.map(|p| format!("{}{}", p.step, if p.more { "+" } else { "" }));
                assert_eq!(chosen.as_deref().unwrap_or("none"), $want);
            }
        )*};
    }

    choices! {
        no_vm: "" => "none";
        one_vm_has_no_second: "." => "0";
        a_cold_function_goes_home: ". . . ." => "0+";
        warm_at_home: "w w w" => "0+";
        an_image_at_home: "i i i" => "0+";
        a_warm_neighbour_beats_a_cold_home: ". . w w" => "2+";
        a_warm_neighbour_beats_the_image_at_home: "i w ." => "1+";
        an_image_at_a_neighbour_beats_a_pull_at_home: ". . i i" => "2+";
        beyond_the_equals_nothing_is_looked_for: ". . . w" => "0+";
        a_home_at_its_bound_gives_to_the_next: "9 . ." => "1+";
        equals_begin_after_those_at_their_bounds: "9 9 9 . . w w" => "5+";
        all_at_their_bounds_the_least_loaded: "9 4 4 7" => "1+";
        a_warm_home_over_bound_beats_a_cold_start: "9w i ." => "0+";
        and_a_pull_at_a_neighbour: "9w . ." => "0+";
        a_warm_neighbour_within_its_bound_beats_it: "9w . w" => "2+";
        of_the_warm_beyond_their_bounds_the_least_loaded: "9w 4w 3 i" => "1+";
        all_at_their_bounds_the_warm_one: "9w 4 4 7" => "0+";
        beyond_the_equals_no_warm_one_is_looked_for: "9 i i i 9w" => "1+";
        a_warm_home_that_refused_gives_to_the_next: "9w! i ." => "1+";
        full_is_full: "room i ." => "1+";
        beyond_its_bound_and_alone: "9w" => "0";
        a_suspect_is_better_than_no_room: "room suspect room" => "1";
        at_its_bound_is_better_than_suspect: "suspect 9" => "1+";
        no_room_anywhere_waits_at_home: "room room room" => "0";
        no_room_at_a_neighbour_lets_it_wait_here: ". room room" => "0";
        no_room_is_better_than_a_breaker: "breaker room" => "1";
        all_breakers_open_is_as_if_there_were_none: "breaker breaker" => "0";
        who_is_out_is_passed_over: "out . ." => "1+";
        the_last_one_is_never_out: "out" => "0";
        if_none_answers_all_are_tried: "out out" => "0+";
        and_the_next_one_too: "out! out" => "1";
        a_vm_that_waits_beats_one_that_is_out: "out room" => "1";
        who_drains_is_never_chosen: "drain drain" => "none";
        an_ejected_vm_is_tried_if_others_drain: "drain out" => "1";
        a_vm_that_refused_is_not_tried_again: "w! . ." => "1+";
        all_tried_is_the_end: "w! .!" => "none";
        ejected_vms_are_not_tried_after_a_refusal: ".! out" => "none";
        the_second_of_two_is_the_last: ".! ." => "1";
        who_was_tried_is_no_equal: ".! . . w" => "3+";
    }

    #[test]
    fn passed_over_vms_are_prewarmed() {
        use Prewarm::{PullImage, StartInstance};
        for (walk, want) in [
            // The image, to a home that lacks only that.
            (". i .", Some((PullImage, 0))),
            ("9 . i", Some((PullImage, 1))),
            ("i . .", None),
            (". w .", None),
            // An instance, on the VM that would have got the call.
            ("9w . .", Some((StartInstance, 1))),
            ("9w . i", Some((StartInstance, 2))),
            ("9w 9 room i", Some((StartInstance, 3))),
            ("9w 4w i", Some((StartInstance, 2))),
            // No VM has room for more, or a VM has taken it.
            ("9w 9 9", None),
            ("9w suspect room", None),
            ("9w w .", None),
            ("9w i! room", None),
            ("9 i .", None),
        ] {
            let looks: Vec<Candidate> = walk.split_whitespace().map(look).collect();
            let choice = choose(0..looks.len(), true, |vm| looks[vm], |_| ()).unwrap();
            assert_eq!(choice.prewarm, want, "{walk}");
        }
    }

    #[test]
    fn a_warm_home_is_the_only_vm_looked_at() {
        let mut looked = 0;
        let warm = look("w");
        let mut count = |_| {
            looked += 1;
            warm
        };
        assert!(choose(0..200, true, &mut count, |_| ()).unwrap().more);
        assert!(!choose(0..1, false, &mut count, |_| ()).unwrap().more);
        assert_eq!(looked, 2);
    }

    #[test]
    fn each_penalty_is_reported_once_per_vm() {
        let looks: Vec<Candidate> = "drain 9 out w".split_whitespace().map(look).collect();
        let mut penalties = Vec::new();
        choose(0..4, true, |vm| looks[vm], |penalty| penalties.push(penalty.as_str()));
        assert_eq!(penalties, ["drain", "bound", "out"]);
    }
}
