//! Ordinary code from Node, Express, Lambda and other platforms behaves as it does there, or the
//! deployment says why not. Each case was found by a user.

use crate::up;
use epsilon_e2e::project;

#[tokio::test]
async fn lambda_handlers_answer_by_callback_or_context() {
    let up = up().await;
    let code = "
const later = (fn) => { setTimeout(fn, 30); };
exports.succeed = (event, context) => later(() => context.succeed({ statusCode: 202, body: 'x' }));
exports.done = (event, context) => later(() => context.done(null, { statusCode: 202, body: 'x' }));
exports.rest = (...args) => later(() => args[2](null, { statusCode: 201, body: 'x' }));
exports.fallback = (event, context, callback = () => {}) => later(() => callback(null, { statusCode: 201, body: 'x' }));
const inner = (event, context, callback) => setTimeout(() => callback(null, { statusCode: 201, body: 'x' }), 30);
exports.wrapped = function () { return inner.apply(this, arguments); };
exports.restApi = (event, context, callback) => callback(null, { statusCode: 200, body: event.httpMethod + event.path });
exports.stream = awslambda.streamifyResponse(async (event, out) => {
  out = awslambda.HttpResponseStream.from(out, { statusCode: 200, headers: { 'content-type': 'text/plain' } });
  out.write('one'); out.write('two'); out.end();
});
";
    let yaml = "
functions:
  callSucceed: { export: succeed, signature: lambda }
  callDone: { export: done, signature: lambda }
  callRest: { export: rest, signature: lambda }
  callFallback: { export: fallback, signature: lambda }
  callWrapped: { export: wrapped, signature: lambda }
  callRestApi: { export: restApi, event: v1 }
  callStream: { export: stream }
";
    let project = project!("callbacks", { "index.js" => code, "epsilon.yaml" => yaml });
    up.deploy(&project).await;
    for (name, status) in [
        ("callSucceed", 202),
        ("callDone", 202),
        ("callRest", 201),
        ("callFallback", 201),
        ("callWrapped", 201),
    ] {
        up.get(&format!("/{name}")).await.expect(status);
    }
    assert_eq!(up.get("/callRestApi/a").await.expect(200).text(), "GET/a");
    assert_eq!(up.get("/callStream").await.expect(200).text(), "onetwo");
}

#[tokio::test]
async fn status_errors_responses_and_routers_work() {
    let up = up().await;
    let project = project!("tastes", {
        "package.json" => r#"{"type":"module"}"#,
        "index.js" => "
const error = (status) => Object.assign(new Error('no'), { status });
export const tasteThrows = () => { throw error(401); };
export const tasteRejects = async () => { throw error(404); };
export const tasteHands = (req, res, next) => next(error(418));
export function tasteWeb(request) { return new Response('web'); }
const router = { __proto__: new Proxy({}, { get: (_, name, router) => (route, handler) => router.routes.push([name, handler]) && router }),
  routes: [], fetch() { return this.routes[0][1](); } };
router.get('/', () => new Response('routed'));
export default router;
",
    });
    up.deploy(&project).await;
    up.get("/tasteThrows").await.expect_error(401, "FUNCTION_ERROR");
    up.get("/tasteRejects").await.expect_error(404, "FUNCTION_ERROR");
    // Express's own answer.
    up.get("/tasteHands").await.expect(418);
    assert_eq!(up.get("/tasteWeb").await.expect(200).text(), "web");
    assert_eq!(up.get("/tastes").await.expect(200).text(), "routed");
}

#[tokio::test]
async fn suspicious_settings_and_left_out_files_are_noted() {
    let up = up().await;
    let project = project!("remarked", {
        "index.js" => "
const remarkAdds = (a, b) => a + b;
module.exports = { remarkAdds, remarkListing: (req, res) => res.json(require('node:fs').readdirSync('.')),
  remarkShort: { func: (req, res) => res.send('x'), config: { timeout: 30 } } };
",
    });
    std::fs::create_dir(project.path().join("uploads")).unwrap();
    let outcome = up.cli_in(&project.path(), &["deploy"]).await.expect(0);
    for note in ["a helper: `remarkAdds(a, b)`", "`timeout: 30` of `remarkShort` is 30 ms"] {
        assert!(outcome.text().contains(note), "{outcome}");
    }
    assert!(up.get("/remarkListing").await.expect(200).text().contains("uploads"));

    project.write("index.js", "exports.remarkListing = (req, res) => res.send('x')");
    let outcome = up.cli_in(&project.path(), &["deploy"]).await.expect(0);
    let note = "still served, not in this source: `remarkAdds`, `remarkShort`; `epsilon delete remarkAdds`";
    assert!(outcome.text().contains(note), "{outcome}");
}

#[tokio::test]
async fn unsupported_typescript_is_named() {
    let up = up().await;
    let project = project!("jsx", {
        "package.json" => r#"{"type":"module","main":"index.tsx"}"#,
        "index.tsx" => "export const jsx = (req: any, res: any) => res.send('x');",
    });
    let failed = up.try_deploy(&project).await;
    let error = failed.failed();
    assert!(error.message.contains("`index.tsx`: JSX, which Node does not run"), "{error:?}");
    assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("esbuild")), "{error:?}");

    let project = project!("decorated", {
        "package.json" => r#"{"type":"module"}"#,
        "index.ts" => "const d = (x: any, y: any) => {};\n@d\nclass A {}\nexport const decorated = (req: any, res: any) => res.send(A.name);",
    });
    let failed = up.try_deploy(&project).await;
    let hint = failed.failed().hint.clone().unwrap_or_default();
    assert!(hint.contains("decorators"), "{failed:?}");
}
