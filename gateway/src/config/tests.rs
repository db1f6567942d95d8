//! Settings as people write them: accepted and refused ones, and the errors.

use super::*;
use epsilon_bootstrap::settings::Section as _;

fn read(text: &str) -> Result<Settings, String> {
    Settings::read(text).map_err(|err| err.to_string())
}

#[test]
fn nothing_written_is_the_documented_defaults() {
    let config = Config::new(read("{}").unwrap(), "/data").unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.max_body, Bytes::mib(100));
}

#[test]
fn units_are_read() {
    let settings = read(r#"{"max_body":"1KiB","idle_timeout":"1m 30s"}"#).unwrap();
    assert_eq!((settings.max_body, settings.idle_timeout.as_secs()), (Bytes(1024), 90));
    assert!(read(r#"{"idle_timeout":"soon"}"#).unwrap_err().contains("`soon`"));
    assert!(read(r#"{"max_bodi":"1KiB"}"#).unwrap_err().contains("max_bodi"));
}

#[test]
fn what_cannot_work_is_named() {
    let refused = |text: &str| Config::new(read(text).unwrap(), "/data").unwrap_err().key;
    for (text, key) in [
        (r#"{"max_connections":0}"#, "max_connections"),
        (r#"{"body_timeout":"0s"}"#, "body_timeout"),
        (r#"{"max_connections_per_ip":0}"#, "max_connections_per_ip"),
        (r#"{"balance_factor":1.0}"#, "balance_factor"),
        (r#"{"header_timeout":"0s"}"#, "header_timeout"),
        (r#"{"domain":".example.org"}"#, "domain"),
        (r#"{"public_url":"example.org"}"#, "public_url"),
        (r#"{"control_url":"10.0.0.1:8081"}"#, "control_url"),
        (r#"{"tls_key":"/etc/epsilon/key.pem"}"#, "tls_certificate"),
        (r#"{"listen_tls":true}"#, "listen_tls"),
    ] {
        assert_eq!(refused(text), key);
    }
}

/// A name is a setting or it is refused as removed, not both.
#[test]
fn no_setting_is_refused_as_removed() {
    for removed in removed::REMOVED {
        let key = removed.key().rsplit('.').next().unwrap();
        let area = removed.key().split('.').next().unwrap();
        let written = format!("{{{area}: {{{key}: 1}}}}");
        let written = if area == key { format!("{{{key}: 1}}") } else { written };
        let err = read(&written).unwrap_err();
        assert!(err.contains("unknown field"), "{written}: {err}");
    }
}
