//! `docs/errors.md` is generated from the verdicts. Rewrite it with `EPSILON_WRITE_DOCS=1 cargo
//! test -p epsilon-api`.

#![allow(clippy::unwrap_used, reason = "a test panics where it stands")]

use epsilon_api::{
    error::{CALLER_GONE, CallError, Fault, VmError},
    ids::{FunctionName, VersionNumber},
    units::Bytes,
};
use std::{fmt::Write, path::Path, time::Duration};

/// Every error of a call, with when it happens and who does what next.
fn rows() -> Vec<(CallError, &'static str)> {
    let function = FunctionName::parse("checkout").unwrap();
    vec![
        (
            CallError::BadRequest("the request has no `Host`"),
            "The request breaks HTTP or a rule of the public listener. The caller corrects the request.",
        ),
        (
            CallError::HeadTooLarge,
            "The head has more than 64 KiB or 1024 fields. The caller sends less. The connection ends.",
        ),
        (
            CallError::TargetTooLong,
            "The path and query alone have more than 65,534 bytes. The caller sends less. The connection ends.",
        ),
        (
            CallError::HeadTooSlow,
            "The head was not complete within `gateway.header_timeout`. The caller sends it at once. The connection ends.",
        ),
        (
            CallError::TlsRequired,
            "The control listener has certificates (`gateway.tls_certificate`) and another machine sent it plain HTTP. The caller writes `https://`. The connection ends.",
        ),
        (
            CallError::FunctionNotFound("chekout".into()),
            "The first part of the path (or of the host) names no function. The caller corrects the name.",
        ),
        (
            CallError::VersionNotFound { function: function.clone(), number: VersionNumber::FIRST },
            "`/{function}@{version}` names a version that never served or was removed. The caller corrects the number; `epsilon versions` lists the versions that exist.",
        ),
        (
            CallError::VersionGuarded { function: function.clone() },
            "A version was called by its address, the operator requires a key for that (`gateway.version_addresses: key`), and the request had no valid one. The caller sends a key.",
        ),
        (
            VmError::BodyTooLarge { limit: Bytes::mib(100) }.into(),
            "The body was announced, or turned out, larger than `gateway.max_body`. The caller sends less, or the operator allows more.",
        ),
        (
            VmError::BodyTooSlow.into(),
            "The caller paused in its body for longer than `gateway.body_timeout`, sent it more slowly than 1 KiB a second, or had not sent all of it when the function's `timeout` ran out. Its instance keeps running. The caller sends faster, or calls again.",
        ),
        (
            VmError::ConcurrencyLimit { function: function.clone(), limit: 20 }.into(),
            "All concurrency slots (`maxInstances` × `concurrency`) stayed taken for `vm_agent.queue_wait`, or the queue was full. The caller tries again after `Retry-After`; the author raises the limits.",
        ),
        (
            VmError::FunctionError { function: function.clone() }.into(),
            "The handler threw or rejected before it answered. The author reads the stack in `epsilon logs`. The instance keeps running. An error of a `(req, res)` function with a `status` or `statusCode` from 400 to 599 is answered with that status, as in Express 5; its message is in the answer if its `expose` is `true`.",
        ),
        (
            VmError::FunctionCrashed { function: function.clone(), cause: "exit 137".into() }
                .into(),
            "The instance exited, was killed for its memory, or hung up before it answered. The author reads the log; the next call gets a new instance.",
        ),
        (
            VmError::AnswerUnreadable { function: function.clone(), cause: "parse".into() }.into(),
            "The instance's answer was not valid HTTP, or its head had more than 1,024 fields or 400 KiB. The log shows the author which.",
        ),
        (
            VmError::Lost { function: function.clone(), cause: "connection reset".into() }.into(),
            "The VM that ran the call died, or its network did. How far the call got is unknown: the caller calls again if the function is safe to run twice. The operator looks at `epsilon vms`. Calls that no VM had accepted yet went to another VM.",
        ),
        (
            VmError::InitFailed { function: function.clone(), detail: String::new() }.into(),
            "The code threw, exited or hung while loading. The author reads the stack in `epsilon logs`.",
        ),
        (
            VmError::NoCapacity { function: function.clone(), cause: "memory".into() }.into(),
            "No VM has memory for another instance, all VMs drain, or the container engine is down. The operator adds room.",
        ),
        (
            CallError::GatewayFull,
            "All connection slots (`gateway.max_connections`) are taken, and no connection is idle. The caller tries again after `Retry-After`; the operator allows more, or adds a gateway.",
        ),
        (
            VmError::FunctionTimeout { function, timeout: Duration::from_secs(60) }.into(),
            "The function's `timeout` ran out before its answer. Its instance was killed, because its code may still have been running.",
        ),
        (
            VmError::Internal("bug".into()).into(),
            "A bug in Epsilon or a broken machine. The operator finds the request id in the gateway's log.",
        ),
    ]
}

fn page() -> String {
    let mut page = String::from(
        "# Errors of a call\n\n\
         Generated from `api/src/error.rs` by a test; do not edit. The body is always\n\
         `{\"error\":{\"type\",\"code\",\"message\",\"hint\",\"request_id\"}}`; `code` is stable, texts are for people.\n\n\
         | status | code | fault | safe to retry | when, and who acts |\n|---|---|---|---|---|\n",
    );
    for (err, when) in rows() {
        let v = err.verdict();
        let retry = if v.retry_safe { "yes" } else { "no" };
        let _ = writeln!(
            page,
            "| {} | `{}` | {} | {retry} | {when} |",
            v.status.as_u16(),
            v.code,
            v.fault.as_str()
        );
    }
    let _ = writeln!(
        page,
        "\nA caller that hangs up gets no answer; the access log shows such a call as {CALLER_GONE} `CALLER_GONE`."
    );
    page
}

#[test]
fn the_errors_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    if std::env::var_os("EPSILON_WRITE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(written, page(), "rewrite it: EPSILON_WRITE_DOCS=1 cargo test -p epsilon-api");
}

#[test]
fn each_code_is_counted_before_the_first_one() {
    let codes = rows().into_iter().map(|(err, _)| (err.verdict().code, err.verdict().fault));
    // The caller never reads the answer after it hung up, so the page has no row for it.
    let codes: Vec<_> = codes.chain([("CALLER_GONE", Fault::Caller)]).collect();
    for kind in &codes {
        assert!(CallError::KINDS.contains(kind), "{kind:?}");
    }
    for kind in CallError::KINDS {
        assert!(codes.contains(&kind), "{kind:?}");
    }
}
