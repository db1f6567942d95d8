//! Help texts, tables and their JSON.

use crate::support::{Fake, Ran, Reply, epsilon};
use insta::assert_snapshot;
use std::path::Path;

pub(crate) const SPEC: &str = r#"{"runtime":"node","entry":"index.js","export":"hello","signature":"auto",
    "timeout_ms":60000,"memory_bytes":268435456,"cpu_millicores":1000,"concurrency":1,
    "min_instances":0,"max_instances":20,"idle_timeout_ms":300000,"env":{},"network":"egress"}"#;

/// A function as the control API returns it.
pub(crate) fn function(name: &str, version: u32) -> String {
    format!(
        r#"{{"name":"{name}","project":"shop","active_version":{version},"url":"http://ADDR/{name}",
        "instances":2,"updated_at":"2026-11-21T10:11:12.345Z","spec":{SPEC}}}"#
    )
}

pub(crate) fn version(number: u32, active: bool) -> String {
    format!(
        r#"{{"version":{number},"active":{active},"image":"epsilon/hello:{number}","digest":"sha256:ab",
        "deployment":"d-0123456789abcdef","created_at":"2026-11-21T10:11:12Z","spec":{SPEC}}}"#
    )
}

fn help(args: &[&str]) -> Ran {
    epsilon(args, &[("COLUMNS", "100")], b"", Path::new("/"))
}

#[test]
fn help_of_the_program() {
    assert_snapshot!(help(&["--help"]).golden());
}

#[test]
fn help_of_each_verb() {
    for verb in [
        "up", "init", "deploy", "invoke", "logs", "rollback", "traffic", "drain", "backup",
        "restore", "keys",
    ] {
        assert_snapshot!(format!("help_{verb}"), help(&[verb, "--help"]).golden());
    }
}

#[test]
fn functions_over_two_pages() {
    let page = |name, more| {
        let next = if more { r#""n 2""# } else { "null" };
        let function = function(name, 3);
        let page = format!(r#"{{"next_cursor":{next},"has_more":{more}}}"#);
        Reply::json(200, &format!(r#"{{"data":[{function}],"pagination":{page}}}"#))
    };
    let script = || {
        vec![
            ("GET /v1/functions", page("hello", true)),
            ("GET /v1/functions?cursor=n+2", page("a-longer-name", false)),
        ]
    };
    assert_snapshot!(Fake::new(script()).run(&["functions"]).golden());
    assert_snapshot!("functions_json", Fake::new(script()).run(&["functions", "--json"]).golden());
}

/// A function with the keep-alive chosen by a VM.
fn with_keep(name: &str, keep: &str) -> String {
    function(name, 3).replacen(r#""instances":2"#, &format!(r#""instances":2,"keep":{keep}"#), 1)
}

#[test]
fn functions_say_how_long_idle_instances_stay() {
    let all = [
        with_keep(
            "often",
            r#"{"idle_ms":660000,"by":"adaptive","why":"99 of 100 pauses were shorter than 10m"}"#,
        ),
        with_keep(
            "hourly",
            r#"{"idle_ms":30000,"ready_after_ms":3240000,"by":"adaptive",
            "why":"calls come 1h to 1h 1m after the last one"}"#,
        ),
        with_keep(
            "fixed",
            r#"{"idle_ms":120000,"by":"set","why":"set by the function's `idleTimeout`"}"#,
        ),
        with_keep(
            "new",
            r#"{"idle_ms":300000,"by":"default","why":"the default: 3 pauses between calls were seen, 8 are needed"}"#,
        ),
        function("silent", 1),
    ];
    let list = format!(r#"{{"data":[{}]}}"#, all.join(","));
    let one = |n: usize| Reply::json(200, &format!(r#"{{"data":{}}}"#, all[n]));
    let fake = Fake::new(vec![
        ("GET /v1/functions", Reply::json(200, &list)),
        ("GET /v1/functions/often", one(0)),
        ("GET /v1/functions/hourly", one(1)),
        ("GET /v1/functions/silent", one(4)),
    ]);
    assert_snapshot!("keep", fake.run(&["functions"]).golden());
    assert_snapshot!("keep_adaptive", fake.run(&["functions", "often"]).golden());
    assert_snapshot!("keep_ready", fake.run(&["functions", "hourly"]).golden());
    assert_snapshot!("keep_unknown", fake.run(&["functions", "silent"]).golden());
    let json = fake.run(&["functions", "often", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["keep"]["idle_ms"], 660_000);
}

#[test]
fn no_functions_yet() {
    let fake = Fake::new(vec![("GET /v1/functions", Reply::json(200, r#"{"data":[]}"#))]);
    assert_snapshot!(fake.run(&["functions"]).golden());
}

#[test]
fn versions_newest_first() {
    let body = format!(r#"{{"data":[{},{}]}}"#, version(12, true), version(9, false));
    let fake = Fake::new(vec![("GET /v1/functions/hello/versions", Reply::json(200, &body))]);
    assert_snapshot!(fake.run(&["versions", "hello"]).golden());
    let ran = fake.run(&["versions", "hello", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json[0]["version"], 12);
    assert_eq!(json[0]["active"], true);
    assert_eq!(json[0]["image"], "epsilon/hello:12");
}

#[test]
fn rollback_sends_the_version_or_none() {
    let reply = Reply::json(200, &format!(r#"{{"data":{}}}"#, function("hello", 2)));
    let fake = Fake::new(vec![("POST /v1/functions/hello/rollback", reply)]);
    assert_snapshot!(fake.run(&["rollback", "hello", "2"]).golden());
    fake.run(&["rollback", "hello"]);
    let bodies: Vec<_> = fake.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [&br#"{"version":2}"#[..], br#"{"version":null}"#]);
}

#[test]
fn delete_says_so() {
    let fake = Fake::new(vec![("DELETE /v1/functions/hello", Reply::json(200, r#"{"data":{}}"#))]);
    assert_snapshot!(fake.run(&["delete", "hello"]).golden());
}

#[test]
fn the_autoscaler_and_its_decisions() {
    let info = r#"{"data":{"driver":"aws-asg","state":"leading","dry_run":false,"wanted":4,"current":4,"ready":3,
        "reason":"1 is enough now; held for another 4m 10s","demand":3.25,"places":24,"panicking":false,"problem":null,
        "decisions":[
          {"at":"2026-11-20T08:00:12Z","wanted":4,"current":4,"reason":"1 is enough now; held for another 5m",
           "steps":["protect i-0a, i-0b"],"problem":null},
          {"at":"2026-11-20T08:00:02Z","wanted":4,"current":1,"reason":"every place was taken; 24.0 were needed over the last 6s",
           "steps":["order VMs up to 4"],"problem":"the group refused: quota"}]}}"#;
    let script = || vec![("GET /v1/autoscaler", Reply::json(200, info))];
    assert_snapshot!(Fake::new(script()).run(&["autoscaler"]).golden());
}

#[test]
fn vms_and_their_drain() {
    let vm = r#"{"data":[{"id":"vm-1","state":"engine_down","memory_bytes":4294967296,
        "memory_used_bytes":268435456,"calls_active":3,"calls_waiting":1,"instances":[],
        "standing":"engine_down","since":"2026-11-21T05:00:00Z","report_age_ms":412},
        {"id":"vm-2","state":"ready","memory_bytes":4294967296,
        "memory_used_bytes":3221225472,"calls_active":0,"calls_waiting":0,"instances":[],
        "standing":"out","reason":"silent","since":"2026-11-21T05:10:00Z",
        "address":"10.0.0.7:8082","report_age_ms":61000,"images_held":12},
        {"id":"vm-3","state":"ready","memory_bytes":4294967296,"memory_used_bytes":0,
        "calls_active":0,"calls_waiting":0,"instances":[],"standing":"starting",
        "since":"2026-11-21T05:11:00Z","address":"10.0.0.8:8082"}]}"#;
    let fake = Fake::new(vec![
        ("GET /v1/vms", Reply::json(200, vm)),
        ("POST /v1/vms/vm-1/drain", Reply::json(200, r#"{"data":{}}"#)),
        ("POST /v1/vms/vm-1/undrain", Reply::json(200, r#"{"data":{}}"#)),
    ]);
    assert_snapshot!(fake.run(&["vms"]).golden());
    assert_snapshot!("drain", fake.run(&["drain", "vm-1"]).golden());
    assert_snapshot!("undrain", fake.run(&["undrain", "vm-1"]).golden());
}

#[test]
fn key_comes_from_flag_environment_or_data_folder() {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("admin.key"), "from-file\n").unwrap();
    let fake = Fake::new(vec![("GET /v1/functions", Reply::json(200, r#"{"data":[]}"#))]);
    let url = format!("http://{}", fake.addr);
    let dir = data.path().to_str().unwrap();
    let run = |args: &[&str], env: &[(&str, &str)]| {
        let args = [&["functions", "--gateway", &url, "--data-dir", dir], args].concat();
        assert_eq!(epsilon(&args, env, b"", Path::new("/")).code, 0);
    };
    run(&[], &[]);
    // CI systems pass missing secrets as empty variables.
    let empty = ["EPSILON_KEY", "EPSILON_GATEWAY", "EPSILON_DATA_DIR", "EPSILON_NODE"];
    run(&[], &empty.map(|name| (name, "")));
    run(&[], &[("EPSILON_KEY", "from-env")]);
    run(&["--key", "from-flag"], &[("EPSILON_KEY", "from-env")]);
    let keys: Vec<_> =
        fake.seen().iter().map(|seen| seen.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(
        keys,
        ["Bearer from-file", "Bearer from-file", "Bearer from-env", "Bearer from-flag"]
    );
}

#[test]
fn a_company_proxy_does_not_stand_before_this_machine() {
    let fake = Fake::new(vec![("GET /v1/functions", Reply::json(200, r#"{"data":[]}"#))]);
    let url = format!("http://{}", fake.addr);
    let env = [
        ("EPSILON_GATEWAY", url.as_str()),
        ("HTTP_PROXY", "http://127.0.0.1:1"),
        ("http_proxy", "http://127.0.0.1:1"),
    ];
    assert_eq!(epsilon(&["functions"], &env, b"", Path::new("/")).code, 0);
}

#[test]
fn the_running_up_of_the_data_folder_is_found() {
    let data = tempfile::tempdir().unwrap();
    let fake = Fake::new(vec![("GET /v1/functions", Reply::json(200, r#"{"data":[]}"#))]);
    let holder = format!(r#"{{"pid":1,"control":"http://{}"}}"#, fake.addr);
    std::fs::write(data.path().join("up.lock"), holder).unwrap();
    let args = ["functions", "--data-dir", data.path().to_str().unwrap()];
    assert_eq!(epsilon(&args, &[], b"", Path::new("/")).code, 0);
}

#[test]
fn keys_and_whose_each_is() {
    let all = r#"{"data":[{"id":"0123456789ab","role":"admin","gateway":"g-0123456789ab",
        "gateway_seen_at":"2026-11-30T10:11:12Z","created_at":"2026-11-21T10:11:12Z","is_yours":true},
        {"id":"aaaaaaaaaaaa","role":"builder","gateway":"g-aaaaaaaaaaaa","gateway_seen_at":null,
        "created_at":"2026-10-21T10:11:12Z","is_yours":false},
        {"id":"bbbbbbbbbbbb","role":"fleet","gateway":null,"gateway_seen_at":null,
        "created_at":"2026-10-21T10:11:12Z","is_yours":false}]}"#;
    let fake = Fake::new(vec![("GET /v1/keys", Reply::json(200, all))]);
    assert_snapshot!(fake.run(&["keys"]).golden());
}

#[test]
fn a_key_in_use_is_removed_by_force_only() {
    let key = r#"{"data":{"id":"0123456789ab","role":"admin","gateway":"g-0123456789ab",
        "gateway_seen_at":null,"created_at":"2026-11-21T10:11:12Z","is_yours":false}}"#;
    let script = |path| vec![(path, Reply::json(200, key))];
    let fake = Fake::new(script("DELETE /v1/keys/0123456789ab"));
    assert_snapshot!(fake.run(&["keys", "rm", "0123456789ab"]).golden());
    let fake = Fake::new(script("DELETE /v1/keys/0123456789ab?force=true"));
    let forced = fake.run(&["keys", "rm", "0123456789ab", "--force", "--json"]).golden();
    assert_snapshot!("a_key_is_removed_json", forced);
    let wrong = help(&["keys", "rm", "epsilon_admin_0123456789ab_00"]).golden();
    assert_snapshot!("a_key_s_text_is_no_id", wrong);
}

#[test]
fn builders_and_how_each_is() {
    let all = r#"{"data":[{"id":null,"address":null,"reachable":true,"version":"0.1.0","builds":null,"builds_from_here":0},
        {"id":"builder-1","address":"10.0.0.7:8083","reachable":true,"version":"0.1.0","builds":2,"builds_from_here":1},
        {"id":"builder-2","address":"10.0.0.8:8083","reachable":false,"cause":"no process listens at its address",
        "version":null,"builds":null,"builds_from_here":0}]}"#;
    let fake = Fake::new(vec![("GET /v1/builders", Reply::json(200, all))]);
    assert_snapshot!(fake.run(&["builders"]).golden());
}
