//! Leases, the order of removals, and what is left after each kind of shutdown.

use super::*;
use tempfile::TempDir;

fn name(n: u8) -> Name {
    Name::layer(&format!("sha256:{}", format!("{n:02x}").repeat(32))).unwrap()
}

fn add(stock: &Arc<Stock>, n: u8) -> Lease {
    let draft = stock.draft().unwrap();
    fs::create_dir(draft.app()).unwrap();
    fs::write(draft.app().join("index.js"), "x").unwrap();
    stock.keep(&name(n), draft, 1000 * u64::from(n)).unwrap()
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn leased_layer_is_not_removed() {
    let folder = TempDir::new().unwrap();
    let stock = Stock::open(folder.path()).unwrap();
    let first = add(&stock, 1);
    let second = stock.lease(&name(1)).unwrap();
    assert_eq!(first.app(), second.app());
    drop(first);
    assert_eq!((stock.oldest(), stock.remove(&name(1))), (None, None));
    assert!(second.app().join("index.js").is_file());
    drop(second);
    assert_eq!(stock.remove(&name(1)), Some(1000));
    assert!(stock.lease(&name(1)).is_none());
    assert_eq!((entries(folder.path()), stock.bytes()), (vec![BOOT.to_owned()], 0));
}

#[test]
fn least_recently_used_is_removed_first_after_restart() {
    let folder = TempDir::new().unwrap();
    let stock = Stock::open(folder.path()).unwrap();
    for n in [1, 2, 3] {
        drop(add(&stock, n));
    }
    drop(stock.lease(&name(1)));
    let order = |stock: &Stock| {
        let next = || stock.oldest().filter(|name| stock.remove(name).is_some());
        std::iter::from_fn(next).collect::<Vec<_>>()
    };
    stock.settle().unwrap();
    drop(stock);
    let stock = Stock::open(folder.path()).unwrap();
    assert_eq!(stock.bytes(), 6000, "the given size, not the measured one");
    assert_eq!(order(&stock), [name(2), name(3), name(1)]);
}

#[test]
fn incomplete_layers_do_not_count() {
    let folder = TempDir::new().unwrap();
    let stock = Stock::open(folder.path()).unwrap();
    drop(add(&stock, 1));
    // Killed while one was unpacked, and while another one was removed.
    let draft = stock.draft().unwrap();
    fs::create_dir(draft.app()).unwrap();
    std::mem::forget(draft);
    fs::create_dir_all(folder.path().join(".gone-1/app/deep")).unwrap();
    fs::write(folder.path().join("readme"), "somebody else's").unwrap();
    drop(stock);
    let stock = Stock::open(folder.path()).unwrap();
    assert_eq!(entries(folder.path()), ["boot", "readme", name(1).as_str()]);
    assert!(stock.lease(&name(1)).is_some(), "an agent that is killed loses no layer");
    assert!(stock.bytes() > 0);

    // A dropped draft is removed.
    drop(stock.draft().unwrap());
    assert_eq!(entries(folder.path()), ["boot", "readme", name(1).as_str()]);
}

#[test]
fn after_power_cut_only_flushed_layers_count() {
    let folder = TempDir::new().unwrap();
    let stock = Stock::open(folder.path()).unwrap();
    drop(add(&stock, 1));
    stock.settle().unwrap();
    drop(add(&stock, 2));
    drop(stock);
    fs::write(folder.path().join(BOOT), "another start of the machine").unwrap();
    let stock = Stock::open(folder.path()).unwrap();
    assert!(stock.lease(&name(1)).is_some());
    assert!(stock.lease(&name(2)).is_none());
    assert_eq!(entries(folder.path()), ["boot", name(1).as_str()]);
}

#[test]
fn layer_removed_by_hand_is_fetched_again() {
    let folder = TempDir::new().unwrap();
    let stock = Stock::open(folder.path()).unwrap();
    drop(add(&stock, 1));
    fs::remove_dir_all(folder.path().join(name(1).as_str())).unwrap();
    assert!(stock.lease(&name(1)).is_none());
    drop(add(&stock, 1));
    assert!(stock.lease(&name(1)).is_some());
    stock.settle().unwrap();
}
