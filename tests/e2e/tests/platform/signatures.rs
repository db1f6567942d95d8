//! The four signatures of a function, CommonJS, ES modules, TypeScript, npm packages.

use crate::up;
use epsilon_e2e::{http::Call, project};
use http::Method;
use serde_json::json;

#[tokio::test]
async fn express_functions_get_real_express_objects() {
    let up = up().await;
    up.deploy(&project!("expressive", { "index.js" => r#"
        exports.expressive = (req, res) => {
          res.cookie("a", "1", { httpOnly: true });
          res.vary("accept").type("json").status(201).json({
            ip: typeof req.ip, accepts: req.accepts("json"), is: req.is("json"), get: req.get("X-A"),
            hostname: req.hostname, protocol: req.protocol, xhr: req.xhr, fresh: req.fresh,
            raw: req.rawBody?.toString(), body: req.body, query: req.query,
          });
        };"# }))
    .await;
    let call = Call::post_json("/expressive?a[]=1", &json!({ "n": 1 })).header("x-a", "b");
    let answer = call.send(up.public()).await.expect(201);
    assert!(answer.header("set-cookie").starts_with("a=1; "), "{answer}");
    assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
    let seen = answer.json();
    assert_eq!(seen["raw"], r#"{"n":1}"#);
    assert_eq!(seen["body"], json!({ "n": 1 }));
    assert_eq!(seen["accepts"], "json");
    assert_eq!(seen["get"], "b");
    assert_eq!(seen["hostname"], "localhost");
}

#[tokio::test]
async fn bodies_are_parsed_by_their_type() {
    let up = crate::probe().await;
    for (kind, sent, body) in [
        ("application/json", r#"{"a":[1]}"#, json!({ "a": [1] })),
        ("application/x-www-form-urlencoded", "a=1&b=x+y", json!({ "a": "1", "b": "x y" })),
        ("text/plain", "text", json!("text")),
        ("application/octet-stream", "abc", json!({ "type": "Buffer", "data": [97, 98, 99] })),
    ] {
        let answer = Call::post("/echo", kind, sent).send(up.public()).await.expect(200).json();
        assert_eq!(answer["body"], body, "{kind}");
        assert_eq!(answer["raw"], sent, "{kind}");
    }
    let bad = Call::post("/echo", "application/json", "{").send(up.public()).await;
    assert_eq!(bad.status, 400, "{bad}");
}

#[tokio::test]
async fn lambda_functions_get_a_proxy_event_of_version_2() {
    let up = up().await;
    up.deploy(&project!("lambdas", {
        "index.js" => r#"
            exports.lambdaEvent = async (event, context) => ({
              statusCode: 202, headers: { "x-lambda": "yes" }, cookies: ["a=1", "b=2"],
              body: JSON.stringify({ event, id: context.awsRequestId,
                left: context.getRemainingTimeInMillis() }),
            });
            exports.lambdaBytes = async () => ({
              statusCode: 200, isBase64Encoded: true, body: Buffer.from([0, 255]).toString("base64"),
            });
            exports.lambdaPlain = async () => ({ just: "an object" });"#,
        "epsilon.yaml" => "functions:
  lambdaEvent: { signature: lambda, memory: 128MiB, timeout: 9s }
  lambdaBytes: { signature: lambda, memory: 128MiB }
  lambdaPlain: { signature: lambda, memory: 128MiB }
",
    }))
    .await;
    let call = Call::new(Method::POST, "/lambdaEvent/a/b?x=1&x=2&y=3")
        .header("content-type", "application/json")
        .header("cookie", "c=3; d=4")
        .body(r#"{"n":1}"#);
    let answer = call.send(up.public()).await.expect(202);
    assert_eq!(answer.header("x-lambda"), "yes");
    assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
    let seen = answer.json();
    let event = &seen["event"];
    assert_eq!(event["version"], "2.0");
    assert_eq!(event["rawPath"], "/a/b");
    assert_eq!(event["rawQueryString"], "x=1&x=2&y=3");
    assert_eq!(event["queryStringParameters"], json!({ "x": "1,2", "y": "3" }));
    assert_eq!(event["cookies"], json!(["c=3", "d=4"]));
    assert_eq!(event["requestContext"]["http"]["method"], "POST");
    assert_eq!(event["body"], r#"{"n":1}"#);
    assert_eq!(event["isBase64Encoded"], false);
    assert_eq!(seen["id"], answer.header("x-epsilon-request-id"));
    let left = seen["left"].as_f64().unwrap();
    assert!(left > 5000.0 && left <= 9000.0, "{left}");
    assert_eq!(up.get("/lambdaBytes").await.expect(200).body[..], [0, 255]);
    assert_eq!(up.get("/lambdaPlain").await.expect(200).json(), json!({ "just": "an object" }));
}

#[tokio::test]
async fn an_export_named_handler_is_a_lambda() {
    let up = up().await;
    up.deploy(&project!("named-handler", {
        "index.js" => "exports.handler = async (event) => ({ statusCode: 200, body: event.version })",
    }))
    .await;
    assert_eq!(up.get("/handler").await.expect(200).text(), "2.0");
}

#[tokio::test]
async fn fetch_functions_speak_request_and_response() {
    let up = up().await;
    up.deploy(&project!("fetcher", {
        "index.mjs" => r#"
            export default {
              async fetch(request, env, ctx) {
                ctx.waitUntil(Promise.resolve());
                const url = new URL(request.url);
                return new Response(JSON.stringify({
                  method: request.method, path: url.pathname, search: url.search,
                  header: request.headers.get("x-a"), body: await request.text(), env: env.COLOUR,
                }), { status: 203, headers: { "x-fetch": "yes", "content-type": "application/json" } });
              },
            };"#,
        "package.json" => r#"{ "name": "fetcher", "main": "index.mjs" }"#,
        "epsilon.yaml" => "functions: { fetcher: { export: default, env: { COLOUR: red } } }",
    }))
    .await;
    let call = Call::post("/fetcher/p?q=1", "text/plain", "hello").header("x-a", "b");
    let answer = call.send(up.public()).await.expect(203);
    assert_eq!(answer.header("x-fetch"), "yes");
    assert_eq!(
        answer.json(),
        json!({ "method": "POST", "path": "/p", "search": "?q=1", "header": "b", "body": "hello",
                "env": "red" })
    );
}

#[tokio::test]
async fn es_modules_top_level_await_and_npm_work() {
    let up = up().await;
    let deployment = up
        .deploy(&project!("modern", {
            "package.json" => r#"{ "type": "module", "dependencies": { "ms": "2.1.3" } }"#,
            "index.js" => r#"
                import ms from "ms";
                import { unit } from "./lib/unit.js";
                const base = await Promise.resolve(2);
                export const modern = (req, res) => res.json(ms(`${base} ${unit}`));"#,
            "lib/unit.js" => "export const unit = 'days'",
        }))
        .await;
    assert_eq!(up.get("/modern").await.expect(200).json(), json!(172_800_000));
    assert!(deployment.step(epsilon_api::admin::Step::Dependencies).is_some(), "{deployment:?}");
}

#[tokio::test]
async fn typescript_files_run_as_they_are() {
    let up = up().await;
    up.deploy(&project!("typed", {
        "package.json" => r#"{ "type": "module", "main": "index.ts" }"#,
        "index.ts" => r#"
            interface Answer { sum: number }
            const add = (a: number, b: number): Answer => ({ sum: a + b });
            export const typed = (req: any, res: any): void => res.json(add(1, 2));"#,
    }))
    .await;
    assert_eq!(up.get("/typed").await.expect(200).json(), json!({ "sum": 3 }));
}

#[tokio::test]
async fn async_and_sync_handlers_streams_and_buffers_all_answer() {
    let up = up().await;
    up.deploy(&project!("ways", { "index.js" => r#"
        exports.ways = async (req, res) => {
          switch (req.path) {
            case "/later": return void setTimeout(() => res.send("later"), 20);
            case "/pipe": return void require("stream").Readable.from(["a", "b"]).pipe(res);
            case "/buffer": return void res.send(Buffer.from("bytes"));
            case "/file": return void res.sendFile(__filename);
            case "/redirect": return void res.redirect("/ways/later");
            case "/empty": return void res.sendStatus(204);
          }
        };"# }))
        .await;
    assert_eq!(up.get("/ways/later").await.expect(200).text(), "later");
    assert_eq!(up.get("/ways/pipe").await.expect(200).text(), "ab");
    assert_eq!(up.get("/ways/buffer").await.expect(200).text(), "bytes");
    assert!(up.get("/ways/file").await.expect(200).text().contains("sendFile"));
    assert_eq!(up.get("/ways/redirect").await.expect(302).header("location"), "/ways/later");
    assert!(up.get("/ways/empty").await.expect(204).body.is_empty());
}
