//! Calls: what a function sees, what the caller gets, and each error of the table with the status
//! and code that it promises.

use crate::{probe, run, up};
use epsilon_e2e::{
    http::{Call, Connection},
    project,
    wait::{SOON, until},
    wire::{exchange, status},
};
use http::Method;
use serde_json::json;

#[tokio::test]
async fn the_function_sees_method_path_query_headers_and_body() {
    let up = probe().await;
    let call = Call::new(Method::PUT, "/echo/a%20b/c?x=1&y=%2F&x=2")
        .header("content-type", "text/plain")
        .header("x-Custom", "Kept")
        .body("as sent");
    let seen = call.send(up.public()).await.expect(200).json();
    assert_eq!(seen["method"], "PUT");
    assert_eq!(seen["url"], "/a%20b/c?x=1&y=%2F&x=2");
    assert_eq!(seen["query"], json!({ "x": ["1", "2"], "y": "/" }));
    assert_eq!(seen["headers"]["x-custom"], "Kept");
    assert_eq!(seen["body"], "as sent");
}

#[tokio::test]
async fn a_function_without_a_path_sees_the_root() {
    let up = probe().await;
    assert_eq!(up.get("/echo").await.expect(200).json()["url"], "/");
    assert_eq!(up.get("/echo?a=b").await.expect(200).json()["url"], "/?a=b");
    assert_eq!(up.get("/echo/").await.expect(200).json()["url"], "/");
}

#[tokio::test]
async fn every_method_reaches_the_function() {
    let up = probe().await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let call = Call::new(method.parse().unwrap(), "/echo");
        assert_eq!(call.send(up.public()).await.expect(200).json()["method"], method);
    }
    let answer = Call::new(Method::HEAD, "/echo").send(up.public()).await.expect(200);
    assert!(answer.body.is_empty());
    assert_ne!(answer.header("content-length"), "");
}

#[tokio::test]
async fn the_answer_is_the_functions_own() {
    let code = r#"res.status(418).set("x-mine", "1").append("set-cookie", "a=1")
        .append("set-cookie", "b=2").send("short")"#;
    let answer = run(code).await.expect(418);
    assert_eq!(answer.text(), "short");
    assert_eq!(answer.header("x-mine"), "1");
    assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
}

#[tokio::test]
async fn functions_may_answer_any_error_status() {
    for code in [404, 429, 500, 502, 503, 504] {
        let answer = run(&format!("res.status({code}).send('mine')")).await.expect(code);
        assert_eq!(answer.text(), "mine");
    }
}

#[tokio::test]
async fn the_public_root_answers_health() {
    let up = up().await;
    up.get("/").await.expect(200);
}

#[tokio::test]
async fn an_unknown_function_is_404() {
    let up = up().await;
    up.get("/missing/path?me").await.expect_error(404, "FUNCTION_NOT_FOUND");
}

/// Names that break something elsewhere: prototypes, paths, shells, buffers.
macro_rules! strange_names {
    ($($test:ident: $target:expr;)*) => {$(
        #[tokio::test]
        async fn $test() {
            let up = up().await;
            let target: &str = &$target;
            let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            let answer = exchange(up.public(), request).await;
            assert_eq!(status(&answer), 404, "{target}: {answer}");
            assert!(answer.contains("FUNCTION_NOT_FOUND"), "{target}: {answer}");
            up.get("/").await.expect(200);
        }
    )*};
}

strange_names! {
    name_proto: "/__proto__";
    name_constructor: "/constructor";
    name_to_string: "/toString";
    name_parent_folder: "/../x";
    name_escaped_dots: "/%2e%2e/x";
    name_escaped_slash: "/..%2f..%2fetc%2fpasswd";
    name_of_300_characters: format!("/{}", "a".repeat(300));
    name_with_shell_characters: "/;touch$IFS/tmp/owned";
    name_with_substitution: "/$(reboot)";
    name_with_backticks: "/%60reboot%60";
    name_with_pipe: "/a|reboot";
    name_with_escaped_newline: "/a%0ab";
    name_with_escaped_zero: "/a%00b";
    name_in_another_case: "/ECHO";
    name_of_an_image: "/docker.io/library/busybox:latest";
    name_not_ascii: "/%C3%A9";
    name_after_two_slashes: "//echo";
    name_of_the_control_api: "/v1/functions";
    name_of_the_metrics: "/metrics";
}

#[tokio::test]
async fn throwing_is_500_and_the_text_is_logged() {
    let answer = run("throw new Error('the secret is 42')").await;
    answer.expect_error(500, "FUNCTION_ERROR");
    assert!(!answer.text().contains("secret"), "{answer}");
    assert!(!answer.text().contains(".js"), "{answer}");
    let up = probe().await;
    let id = answer.header("x-epsilon-request-id");
    let logged = until("the stack is in the log", SOON, async || {
        let log = up.cli(&["logs", "probe", "--request", id]).await.stdout;
        if log.contains("the secret is 42") { Ok(log) } else { Err(log) }
    })
    .await;
    assert!(logged.contains("at "), "a stack: {logged}");
}

#[tokio::test]
async fn rejecting_and_throwing_non_errors_are_500() {
    for code in ["throw undefined", "throw 'text'", "await Promise.reject(null)", "null.x"] {
        run(code).await.expect_error(500, "FUNCTION_ERROR");
    }
}

#[tokio::test]
async fn crash_is_502_and_next_call_succeeds() {
    // Several times each: calls get lost just when a process ends.
    for code in
        ["process.exit(3)", "process.kill(process.pid, 'SIGKILL')", "process.abort()"].repeat(3)
    {
        run(code).await.expect_error(502, "FUNCTION_CRASHED");
        run("return 'well'").await.expect(200);
    }
}

#[tokio::test]
async fn hanging_up_on_the_caller_is_502() {
    run("req.socket.destroy(); await new Promise(() => {})")
        .await
        .expect_error(502, "FUNCTION_CRASHED");
    run("return 'well'").await.expect(200);
}

#[tokio::test]
async fn an_unhandled_rejection_does_not_spoil_the_next_calls() {
    run("Promise.reject(new Error('not awaited')); return 1").await.expect(200);
    for _ in 0..5 {
        run("return 'well'").await.expect(200);
    }
}

#[tokio::test]
async fn answering_twice_keeps_the_first_answer() {
    let answer = run("res.send('first'); try { res.send('second') } catch {}").await.expect(200);
    assert_eq!(answer.text(), "first");
    let answer = run("res.send('first'); res.send('second')").await.expect(200);
    assert_eq!(answer.text(), "first");
    run("return 'well'").await.expect(200);
}

#[tokio::test]
async fn throwing_after_the_head_breaks_the_answer_off() {
    let up = probe().await;
    let code =
        "res.write('part'); await new Promise(r => setTimeout(r, 50)); throw new Error('late')";
    let call = Call::post("/probe", "text/plain", code);
    let mut open = call.open(up.public()).await;
    assert_eq!(open.status(), 200);
    let mut seen = Vec::new();
    let broken = loop {
        match open.piece().await {
            Ok(Some(piece)) => seen.extend(piece),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(broken, "a cut answer must not look whole; got {:?}", String::from_utf8_lossy(&seen));
    run("return 'well'").await.expect(200);
}

#[tokio::test]
async fn a_timeout_is_504_and_the_instance_is_killed() {
    let up = up().await;
    up.deploy(&project!("never", { "index.js" => r#"
        exports.never = {
          config: { timeout: 500, memory: "128MiB", maxInstances: 1 },
          func: (req, res) => {
            if (req.path === "/quick") return res.send(String(process.uptime()));
            if (req.path === "/spin") for (;;);
          },
        };"# }))
        .await;
    for path in ["/never/wait", "/never/spin"] {
        let before = up.get("/never/quick").await.expect(200);
        let container = up.container("never").await.id;
        let answer = up.get(path).await;
        answer.expect_error(504, "FUNCTION_TIMEOUT");
        assert!(answer.took.as_millis() >= 500, "{answer}");
        assert!(answer.took.as_secs() < 5, "{answer} after {before}");
        until("the instance is gone", SOON, async || {
            let containers = up.containers(Some("never")).await;
            let left = containers.into_iter().any(|c| c.id == container && c.is_running());
            if left { Err("it runs") } else { Ok(()) }
        })
        .await;
        up.get("/never/quick").await.expect(200);
    }
}

#[tokio::test]
async fn one_connection_carries_many_calls_also_after_errors() {
    let up = probe().await;
    let mut connection = Connection::open(&up.public().into()).await.unwrap();
    for (target, status) in
        [("/echo", 200), ("/missing", 404), ("/echo/x", 200), ("/", 200), ("/echo", 200)]
    {
        let answer = connection.call(Call::get(target)).await.unwrap();
        assert_eq!(answer.status, status, "{target}: {answer}");
    }
}

#[tokio::test]
async fn top_level_variables_survive_calls_and_are_never_shared() {
    let up = up().await;
    let module = |name: &str| {
        format!(
            "globalThis.count ??= 0; let mine = 0;
             exports.{name} = {{ config: {{ memory: '128MiB', maxInstances: 1 }},
               func: (req, res) => res.json([++globalThis.count, ++mine]) }};"
        )
    };
    up.deploy(&project!("counters", {
        "index.js" => "Object.assign(exports, require('./a'), require('./b'))",
        "a.js" => module("countA"),
        "b.js" => module("countB"),
    }))
    .await;
    for wanted in 1..=3 {
        assert_eq!(up.get("/countA").await.expect(200).json(), json!([wanted, wanted]));
    }
    assert_eq!(up.get("/countB").await.expect(200).json(), json!([1, 1]));
}
