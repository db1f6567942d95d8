//! The control API: it requires the key from the first start, answers in one format, and refuses
//! unknown names.

use crate::{probe, up};
use epsilon_e2e::http::Call;
use http::Method;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn nothing_is_shown_or_done_without_the_key() {
    let up = probe().await;
    let routes = [
        (Method::GET, "/v1/functions"),
        (Method::GET, "/v1/functions/probe"),
        (Method::DELETE, "/v1/functions/probe"),
        (Method::GET, "/v1/functions/probe/versions"),
        (Method::POST, "/v1/functions/probe/rollback"),
        (Method::GET, "/v1/functions/probe/logs"),
        (Method::POST, "/v1/deployments?folder=x"),
        (Method::GET, "/v1/deployments"),
        (Method::GET, "/v1/vms"),
        (Method::POST, "/v1/vms/x/drain"),
    ];
    let wrong = ["", "Bearer", "Bearer wrong", "Basic YWRtaW46", "Bearer ' OR 1=1"];
    for (method, path) in routes {
        for authorization in wrong {
            let mut call = Call::new(method.clone(), path);
            if !authorization.is_empty() {
                call = call.header("authorization", authorization);
            }
            let answer = call.send(up.control()).await;
            assert_eq!(answer.status, 401, "{method} {path} `{authorization}`: {answer}");
            assert_eq!(answer.json()["error"]["type"], "unauthorized", "{answer}");
        }
    }
    up.get("/echo").await.expect(200);
}

#[tokio::test]
async fn keys_are_readable_only_by_their_owner() {
    let up = up().await;
    for file in ["admin.key", "fleet.token", "builder.token"] {
        let mode = std::fs::metadata(up.data().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_ne!(
        std::fs::read(up.data().join("admin.key")).unwrap(),
        std::fs::read(up.data().join("fleet.token")).unwrap()
    );
    let token = std::fs::read_to_string(up.data().join("fleet.token")).unwrap();
    let call =
        Call::get("/v1/functions").header("authorization", &format!("Bearer {}", token.trim()));
    let status = call.send(up.control()).await.status;
    assert!(status == 401 || status == 403, "the joining token is no admin key: {status}");
}

#[tokio::test]
async fn key_is_neither_logged_nor_stored() {
    let up = probe().await;
    up.admin("/v1/functions").await;
    assert!(!up.log().contains(up.key()));
    let store = std::fs::read(up.data().join("epsilon.db")).unwrap();
    let key = up.key().as_bytes();
    assert!(!store.windows(key.len()).any(|bytes| bytes == key), "keys are stored hashed");
}

#[tokio::test]
async fn functions_versions_deployments_and_vms_have_their_documented_form() {
    let up = probe().await;
    let list = up.send_admin(Call::get("/v1/functions")).await.expect(200).json();
    assert!(list["pagination"]["has_more"].is_boolean(), "{list}");
    assert!(list["pagination"].get("next_cursor").is_some(), "{list}");
    let probe = up.admin("/v1/functions/probe").await;
    assert_eq!(probe["name"], "probe");
    assert_eq!(probe["project"], "probe");
    assert_eq!(probe["active_version"], 1);
    assert_eq!(probe["url"], format!("http://{}/probe", up.public()));
    assert!(probe["updated_at"].as_str().unwrap().ends_with('Z'), "{probe}");
    assert_eq!(probe["spec"]["memory_bytes"], 128 << 20);

    let versions = up.admin("/v1/functions/probe/versions").await;
    assert_eq!(versions[0]["version"], 1);
    assert_eq!(versions[0]["active"], true);
    assert!(versions[0]["digest"].as_str().unwrap().starts_with("sha256:"), "{versions}");

    let id = versions[0]["deployment"].as_str().unwrap();
    let deployment = up.admin(&format!("/v1/deployments/{id}")).await;
    assert_eq!(deployment["state"], "done");
    assert_eq!(deployment["functions"][0]["changed"], true);

    let vms = up.admin("/v1/vms").await;
    assert_eq!(vms[0]["id"], up.vm());
    assert_eq!(vms[0]["state"], "ready");
    assert!(vms[0]["memory_bytes"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn lists_are_given_page_by_page() {
    let up = probe().await;
    let mut names = Vec::new();
    let mut target = "/v1/functions?limit=1".to_owned();
    for _ in 0..500 {
        let page = up.send_admin(Call::get(&target)).await.expect(200).json();
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 1, "{page}");
        names.extend(data.iter().map(|f| f["name"].as_str().unwrap().to_owned()));
        if page["pagination"]["has_more"] == false {
            break;
        }
        let cursor = page["pagination"]["next_cursor"].as_str().expect("a cursor");
        target = format!("/v1/functions?limit=1&cursor={cursor}");
    }
    assert!(names.contains(&"probe".to_owned()) && names.contains(&"echo".to_owned()), "{names:?}");
    let mut unique = names.clone();
    unique.dedup();
    assert_eq!(names, unique, "no function twice");
}

#[tokio::test]
async fn missing_is_404_and_unknown_names_are_reported() {
    let up = probe().await;
    for target in [
        "/v1/functions/missing",
        "/v1/functions/missing/versions",
        "/v1/nowhere",
        "/v1/deployments/d-0123456789abcdef",
    ] {
        let answer = up.send_admin(Call::get(target)).await;
        assert_eq!(answer.status, 404, "{target}: {answer}");
        assert!(answer.json()["error"]["code"].is_string(), "{target}: {answer}");
    }
    for name in ["..%2Fx", "__proto__", "a%00b", "%C3%A9"] {
        let answer = up.send_admin(Call::get(&format!("/v1/functions/{name}"))).await;
        assert!(matches!(answer.status, 400 | 404 | 422), "{name}: {answer}");
        assert!(answer.json()["error"]["code"].is_string(), "{name}: {answer}");
    }
    let call = Call::post_json("/v1/functions/probe/rollback", &json!({ "verson": 1 }));
    let answer = up.send_admin(call).await;
    assert!(matches!(answer.status, 400 | 422), "{answer}");
    let error = answer.json()["error"].to_string();
    assert!(error.contains("verson") && error.contains("`version`"), "{error}");
    for body in ["", "{", "[]", "{\"version\":0}", "{\"version\":\"1\"}"] {
        let call = Call::post("/v1/functions/probe/rollback", "application/json", body);
        let status = up.send_admin(call).await.status;
        assert!((400..500).contains(&status), "{body}: {status}");
    }
    let answer = up.send_admin(Call::new(Method::PUT, "/v1/functions/probe")).await;
    assert_eq!(answer.status, 405, "{answer}");
}

#[tokio::test]
async fn health_metrics_and_openapi_are_served() {
    let up = probe().await;
    up.get("/echo").await.expect(200);
    Call::get("/healthz").send(up.control()).await.expect(200);
    let metrics = up.send_admin(Call::get("/metrics")).await.expect(200).text();
    for name in ["epsilon_calls_total", "epsilon_vm_memory_bytes", "epsilon_engine_up"] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    let openapi = up.send_admin(Call::get("/v1/openapi.json")).await.expect(200).json();
    for path in ["/v1/functions", "/v1/functions/{name}/rollback", "/v1/deployments", "/v1/vms"] {
        assert!(openapi["paths"].get(path).is_some(), "{path} in {}", openapi["paths"]);
    }
}

#[tokio::test]
async fn the_public_listener_knows_nothing_of_the_control_api() {
    let up = up().await;
    for target in ["/v1/functions", "/v1/vms", "/healthz", "/metrics", "/v1/openapi.json"] {
        let call = Call::get(target).header("authorization", &format!("Bearer {}", up.key()));
        call.send(up.public()).await.expect_error(404, "FUNCTION_NOT_FOUND");
    }
}
