//! Leases, the order of removals, and what is left after each kind of shutdown.

use super::*;
use tempfile::TempDir;

fn name(n: u8) -> Name {
    Name::layer(&format!("sha256:{}", format!("{n:02x}").repeat(32))).unwrap()
}

fn add(store: &Arc<LayerStore>, n: u8) -> LayerLease {
    let draft = store.draft().unwrap();
    fs::create_dir(draft.app()).unwrap();
    fs::write(draft.app().join("index.js"), "x").unwrap();
    store.insert(&name(n), draft, 1000 * u64::from(n)).unwrap()
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
    let store = LayerStore::open(folder.path()).unwrap();
    let first = add(&store, 1);
    let second = store.lease(&name(1)).unwrap();
    assert_eq!(first.app(), second.app());
    drop(first);
    assert_eq!((store.oldest(), store.remove(&name(1))), (None, None));
    assert!(second.app().join("index.js").is_file());
    drop(second);
    assert_eq!(store.remove(&name(1)), Some(1000));
    assert!(store.lease(&name(1)).is_none());
    assert_eq!((entries(folder.path()), store.bytes()), (vec![BOOT.to_owned()], 0));
}

#[test]
fn least_recently_used_is_removed_first_after_restart() {
    let folder = TempDir::new().unwrap();
    let store = LayerStore::open(folder.path()).unwrap();
    for n in [1, 2, 3] {
        drop(add(&store, n));
    }
    drop(store.lease(&name(1)));
    let order = |store: &LayerStore| {
        let next = || store.oldest().filter(|name| store.remove(name).is_some());
        std::iter::from_fn(next).collect::<Vec<_>>()
    };
    store.flush().unwrap();
    drop(store);
    let store = LayerStore::open(folder.path()).unwrap();
    assert_eq!(store.bytes(), 6000, "the given size, not the measured one");
    assert_eq!(order(&store), [name(2), name(3), name(1)]);
}

#[test]
fn incomplete_layers_do_not_count() {
    let folder = TempDir::new().unwrap();
    let store = LayerStore::open(folder.path()).unwrap();
    drop(add(&store, 1));
    // Killed while one was unpacked, and while another one was removed.
    let draft = store.draft().unwrap();
    fs::create_dir(draft.app()).unwrap();
    std::mem::forget(draft);
    fs::create_dir_all(folder.path().join(".gone-1/app/deep")).unwrap();
    fs::write(folder.path().join("readme"), "somebody else's").unwrap();
    drop(store);
    let store = LayerStore::open(folder.path()).unwrap();
    assert_eq!(entries(folder.path()), ["boot", "readme", name(1).as_str()]);
    assert!(store.lease(&name(1)).is_some(), "an agent that is killed loses no layer");
    assert!(store.bytes() > 0);

    // A dropped draft is removed.
    drop(store.draft().unwrap());
    assert_eq!(entries(folder.path()), ["boot", "readme", name(1).as_str()]);
}

#[test]
fn after_power_cut_only_flushed_layers_count() {
    let folder = TempDir::new().unwrap();
    let store = LayerStore::open(folder.path()).unwrap();
    drop(add(&store, 1));
    store.flush().unwrap();
    drop(add(&store, 2));
    drop(store);
    fs::write(folder.path().join(BOOT), "another start of the machine").unwrap();
    let store = LayerStore::open(folder.path()).unwrap();
    assert!(store.lease(&name(1)).is_some());
    assert!(store.lease(&name(2)).is_none());
    assert_eq!(entries(folder.path()), ["boot", name(1).as_str()]);
}

#[test]
fn layer_removed_by_hand_is_fetched_again() {
    let folder = TempDir::new().unwrap();
    let store = LayerStore::open(folder.path()).unwrap();
    drop(add(&store, 1));
    fs::remove_dir_all(folder.path().join(name(1).as_str())).unwrap();
    assert!(store.lease(&name(1)).is_none());
    drop(add(&store, 1));
    assert!(store.lease(&name(1)).is_some());
    store.flush().unwrap();
}
