//! Settings as people write them: accepted and refused ones, and the errors.

use super::*;
use epsilon_bootstrap::settings::Section as _;

fn read(yaml: &str) -> Result<Config, String> {
    let settings = Settings::read(yaml).map_err(|e| e.to_string())?;
    settings.check(Path::new("/data")).map_err(|e| epsilon_api::chain::Chain(&e).to_string())
}

#[test]
fn empty_settings_mean_the_defaults() {
    let config = read("{}").unwrap();
    assert_eq!(config.folder, Path::new("/data/vm"));
    assert_eq!(config.queue_wait, Duration::from_secs(10));
    assert!(!config.dangerous_allow_metadata);
}

#[test]
fn units_are_read() {
    let config = read("{queue_wait: 250ms, memory: 2GiB, starts_at_once: 2}").unwrap();
    assert_eq!(config.queue_wait, Duration::from_millis(250));
    assert_eq!(config.memory, Some(Bytes(2 << 30)));
    assert_eq!(config.starts_per_version, 1);
}

#[test]
fn no_cells_at_all_need_one_setting() {
    assert_eq!(read("{cells_max: 0}").unwrap().cells, Range { min: 0, max: 0 });
    assert_eq!(read("{cells_max: 1}").unwrap().cells, Range { min: 1, max: 1 });
}

#[test]
fn a_fleet_is_named_or_there_is_none() {
    assert!(read("{listen: '127.0.0.1:1'}").unwrap().member.is_none());
    let member = read("{gateways: 'http://a:1', token_file: x}").unwrap().member.unwrap();
    assert_eq!(member.listen, "0.0.0.0:8082".parse().unwrap());
    assert!(member.limits.idle > Duration::from_secs(15), "longer than gateways keep one");
}

#[test]
fn instances_have_own_user_ids_by_default() {
    assert_eq!(read("{}").unwrap().user_ids, Some(1_879_048_192..=LARGEST_USER_ID));
    assert_eq!(read("{user_ids: 100000-165535}").unwrap().user_ids, Some(100_000..=165_535));
    assert_eq!(read("{user_ids: shared}").unwrap().user_ids, None);
}

#[test]
fn bad_settings_name_the_key() {
    for (yaml, part) in [
        ("{queue_wait: soon}", "`soon` is not a duration"),
        ("{memory: 1KiB}", "vm_agent.memory"),
        ("{quue_wait: 1s}", "quue_wait"),
        ("{starts_at_once: 0}", "starts_at_once"),
        ("{cells_min: 3, cells_max: 2}", "vm_agent.cells_max"),
        ("{cells_min: 9}", "vm_agent.cells_max"),
        ("{disk_limit: 101}", "disk_limit"),
        ("{registry_user: ann}", "vm_agent.registry_user"),
        ("{registry: 'https://registry.example'}", "vm_agent.registry"),
        ("{registry_docker_config: /nowhere}", "no such file"),
        ("{gateways: 'https://a:1', token_file: x}", "`https://` needs the settings"),
        ("{instance_idle: 0s}", "vm_agent.instance_idle"),
        ("{user_ids: 0-100000}", "vm_agent.user_ids"),
        ("{user_ids: 200000-100000}", "vm_agent.user_ids"),
        ("{user_ids: 100000-4294967295}", "vm_agent.user_ids"),
        ("{user_ids: many}", "vm_agent.user_ids"),
        ("{seccomp: none}", "seccomp"),
        ("{closed_networks: '10.0.0.0/8,10.0'}", "vm_agent.closed_networks"),
        ("{open_addresses: 'db.example:5432'}", "vm_agent.open_addresses"),
        ("{tls_key: k.pem}", "set together or not at all"),
    ] {
        let err = read(yaml).unwrap_err();
        assert!(err.contains(part), "{yaml}: {err}");
    }
}

/// A name is a setting or it is refused as removed, not both.
#[test]
fn no_setting_is_refused_as_removed() {
    for removed in removed::REMOVED {
        let err = read(&format!("{{{}: 1}}", removed.key())).unwrap_err();
        assert!(err.contains("unknown field"), "{}: {err}", removed.key());
    }
}
