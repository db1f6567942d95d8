//! Settings as people write them: accepted and refused ones, and the errors.

use super::*;
use epsilon_bootstrap::settings::Section as _;

fn read(yaml: &str) -> Result<Config, String> {
    let settings = Settings::read(yaml).map_err(|e| e.to_string())?;
    Config::new(settings, Path::new("/data/builder")).map_err(|e| e.to_string())
}

#[test]
fn nothing_has_to_be_set() {
    let config = read("{}").unwrap();
    assert_eq!(config.inspect.time, Duration::from_secs(20));
    assert!(config.registry.is_none() && config.member().is_none());
}

#[test]
fn units_are_written_by_people() {
    let config = read("{inspect_timeout: 1m, install_memory: 1GiB, install_cpu: 0.5}").unwrap();
    assert_eq!(config.inspect.time, Duration::from_secs(60));
    assert_eq!(config.install.memory, Bytes::mib(1024));
    assert_eq!(config.install.cpu, MilliCores(500));
}

macro_rules! refused {
    ($($name:ident: $yaml:expr => $says:expr;)*) => {$(
        #[test]
        fn $name() {
            let err = read($yaml).unwrap_err();
            assert!(err.contains($says), "{err}");
        }
    )*};
}

refused! {
    unknown_key: "{regsitry: x}" => "regsitry";
    time_without_unit: "{inspect_timeout: 20}" => "expected a duration with its unit";
    zero_time: "{inspect_timeout: 0s}" => "longer than 0";
    no_builds: "{builds: 0}" => "at least one";
    engine_elsewhere: "{engine: 'tcp://10.0.0.1:2375'}" => "on this machine";
    missing_bundle: "{ca_bundle: /nowhere/ca.crt}" => "does not exist";
    registry_with_scheme: "{registry: 'https://registry.example'}" => "without `https://`";
    registry_without_host: "{registry: shop}" => "host";
    fleet_without_a_token: "{gateways: 'http://10.0.0.4:8081'}" => "builder.token";
    fleet_that_is_no_url: "{gateways: '10.0.0.4', token_file: x}" => "URLs";
    tls_fleet_without_tls: "{gateways: 'https://10.0.0.4:8081', token_file: x}" => "needs `tls_certificate`";
    half_a_certificate: "{tls_key: x}" => "go together";
    password_without_registry: "{registry_user: ann, registry_password: x}" => "no other one";
    two_passwords: "{registry: 'registry.example', registry_user: ann, registry_password: x, \
                    registry_password_file: /dev/null}" => "either";
    missing_authority: "{registry: 'registry.example', registry_ca: /nowhere}" => "does not exist";
    authority_that_is_none: "{registry: 'registry.example', registry_ca: /etc/hostname}" => "PEM";
    no_images_kept: "{registry: 'registry.example', registry_keep_images: 0}" => "at least 1";
    password_alone: "{registry: 'registry.example', registry_password: x}" => "go together";
    image_that_is_a_path: "{runtime_image: ../x}" => "name of an image";
}

/// A name is a setting or it is refused as removed, not both.
#[test]
fn no_setting_is_refused_as_removed() {
    for removed in removed::REMOVED {
        let err = read(&format!("{{{}: 1}}", removed.key())).unwrap_err();
        assert!(err.contains("unknown field"), "{}: {err}", removed.key());
    }
}
