//! Settings as people write them: accepted and refused ones, and the errors.

use super::*;

fn read(text: &str) -> Result<Settings, String> {
    serde_json::from_str(text).map_err(|err| err.to_string())
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
        (r#"{"min_body_rate":"0B"}"#, "min_body_rate"),
        (r#"{"max_connections_per_ip":0}"#, "max_connections_per_ip"),
        (r#"{"max_header":"1KiB"}"#, "max_header"),
        (r#"{"max_headers":0}"#, "max_headers"),
        (r#"{"balance_factor":1.0}"#, "balance_factor"),
        (r#"{"balance_floor":-1}"#, "balance_floor"),
        (r#"{"max_tries":0}"#, "max_tries"),
        (r#"{"retry_percent":101}"#, "retry_percent"),
        (r#"{"vm_silence":"1s"}"#, "vm_silence"),
        (r#"{"vm_silence":"20s"}"#, "vm_silence"),
        (r#"{"vm_failures":0}"#, "vm_failures"),
        (r#"{"breaker_failures":0}"#, "breaker_failures"),
        (r#"{"header_timeout":"0s"}"#, "header_timeout"),
        (r#"{"fetch_timeout":"0s"}"#, "fetch_timeout"),
        (r#"{"builder_silence":"10s"}"#, "builder_silence"),
        (r#"{"domain":".example.org"}"#, "domain"),
        (r#"{"public_url":"example.org"}"#, "public_url"),
        (r#"{"control_url":"10.0.0.1:8081"}"#, "control_url"),
        (r#"{"tls_key":"/etc/epsilon/key.pem"}"#, "tls_certificate"),
        (r#"{"listen_tls":true}"#, "listen_tls"),
        (r#"{"member_lost_after":"2s"}"#, "member_lost_after"),
        (r#"{"member_forget_after":"5s"}"#, "member_forget_after"),
        (r#"{"max_joining":0}"#, "max_joining"),
    ] {
        assert_eq!(refused(text), key);
    }
}
