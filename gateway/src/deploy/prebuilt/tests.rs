//! Valid documents, and the errors for invalid ones.

use super::*;
use epsilon_api::{
    function::{Blob, ImageLayer},
    ids::ProjectName,
    units::{Bytes, MilliCores},
};
use std::num::NonZeroU32;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).unwrap()
}

fn image(name: &str) -> ImageRef {
    ImageRef {
        reference: format!("registry.example:5000/shop/{name}@sha256:{HEX}"),
        digest: format!("sha256:{HEX}"),
    }
}

fn parts(f: &mut BuiltFunction) -> &mut Parts {
    f.parts.as_mut().unwrap()
}

fn blob(f: &mut BuiltFunction) -> &mut Blob {
    parts(f).layers[0].blob.as_mut().unwrap()
}

fn function(text: &str) -> BuiltFunction {
    BuiltFunction {
        name: name(text),
        spec: FunctionSpec::new(Runtime::Node, "index.js", text),
        image: image(text),
        parts: Some(Parts {
            base: image("base"),
            layers: vec![ImageLayer {
                diff_id: format!("sha256:{HEX}"),
                blob: Some(Blob { digest: format!("sha256:{HEX}"), bytes: Bytes(9) }),
            }],
        }),
    }
}

fn document(functions: Vec<BuiltFunction>) -> Built {
    Built { project: ProjectName::parse("shop").unwrap(), functions }
}

/// The error for one function after this change, or `good`.
fn outcome(change: impl FnOnce(&mut BuiltFunction)) -> String {
    let mut pay = function("pay");
    change(&mut pay);
    let checked = checked(document(vec![pay]), &[], &Ceilings::default(), false);
    checked.map_or_else(|err| err.to_string(), |_| "good".into())
}

#[test]
fn names_of_the_platforms_paths_are_refused() {
    for reserved in ["v1", "healthz", "metrics", "console", "git", "mcp"] {
        let all = document(vec![function("pay"), function(reserved)]);
        let err = checked(all, &[], &Ceilings::default(), false).unwrap_err();
        assert_eq!(err, PrebuiltError::Reserved(name(reserved)));
    }
}

macro_rules! says {
    ($($test:ident: $change:expr => $want:literal;)*) => {$(
        #[test]
        fn $test() {
            let outcome = outcome($change);
            assert!(outcome.contains($want), "{outcome}");
        }
    )*};
}

says! {
    defaults_are_good: |_| {} => "good";
    a_container_needs_no_entry: |f| { f.spec.runtime = Runtime::Container; f.spec.entry.clear(); f.parts = None; } => "good";
    no_entry: |f| f.spec.entry.clear() => "`pay`: `entry` must be a name";
    no_timeout: |f| f.spec.timeout = Duration::ZERO => "`timeout_ms` must be at least 1";
    a_long_timeout: |f| f.spec.timeout = Duration::from_secs(901) => "`timeout_ms` is more than the operator's ceiling of 15m";
    idle_for_ever: |f| f.spec.idle_timeout = Some(Duration::MAX) => "`idle_timeout_ms` is more than";
    little_memory: |f| f.spec.memory = Bytes::mib(31) => "`memory_bytes` must be at least 32MiB";
    much_memory: |f| f.spec.memory = Bytes::mib(9 << 10) => "`memory_bytes` is more than the operator's ceiling of 8GiB";
    no_processor: |f| f.spec.cpu = MilliCores(0) => "`cpu_millicores` must be at least 1";
    many_processors: |f| f.spec.cpu = MilliCores(16_001) => "`cpu_millicores` is more than";
    many_calls: |f| f.spec.concurrency = NonZeroU32::MAX => "`concurrency` is more than";
    many_instances: |f| f.spec.max_instances = NonZeroU32::MAX => "`max_instances` is more than";
    more_ready_than_allowed: |f| f.spec.min_instances = 21 => "`min_instances` is more than `max_instances` (20)";
    the_platform_s_variables: |f| { f.spec.env.insert("EPSILON_X".into(), String::new()); } => "`env` sets `EPSILON_X`, which belongs";
    odd_variables: |f| { f.spec.env.insert("A=B".into(), String::new()); } => "a name is letters, digits and `_`";
    zero_bytes: |f| { f.spec.env.insert("A".into(), "\0".into()); } => "has a zero byte in `A`";
    too_many_variables: |f| { f.spec.env.insert("A".into(), "x".repeat(65 << 10)); } => "`env` is longer than 64 KiB";
    no_digest: |f| f.image.digest = "latest".into() => "`image` must have a `digest`";
    a_tag: |f| f.image.reference = "registry.example/pay:1".into() => "VMs of a fleet need it in a registry, by digest";
    half_a_digest: |f| f.image.reference = "registry.example/pay@sha256:00".into() => "with 64 hexadecimal digits";
    an_upper_case_digest: |f| f.image.digest = f.image.digest.to_uppercase() => "`image` must have a `digest`";
    another_path: |f| f.image.reference = format!("a/../containers@sha256:{HEX}") => "not a valid image name";
    a_question: |f| f.image.reference = format!("a/b?x=1@sha256:{HEX}") => "not a valid image name";
    no_parts: |f| f.parts = None => "good";
    parts_of_a_container: |f| f.spec.runtime = Runtime::Container => "`parts` has no meaning";
    a_base_by_its_tag: |f| parts(f).base.reference = "registry.example/base:1".into() => "`parts.base` is `registry.example/base:1`, which is in one machine's";
    a_base_without_a_digest: |f| parts(f).base.digest = "latest".into() => "`parts.base` must have a `digest`";
    no_layers: |f| parts(f).layers.clear() => "`parts` has 0 layers; it can have 1 to 16";
    many_layers: |f| { let one = parts(f).layers[0].clone(); parts(f).layers = vec![one; 17]; } => "`parts` has 17 layers";
    a_layer_that_is_a_path: |f| parts(f).layers[0].diff_id = "../../etc".into() => "`parts` must identify layers and blobs by `sha256:`";
    a_blob_that_is_a_path: |f| blob(f).digest = format!("sha256:..{HEX}") => "`parts` must identify layers and blobs by `sha256:`";
    layers_without_blobs: |f| parts(f).layers[0].blob = None => "good";
    no_name: |f| f.image.reference = String::new() => "not a valid image name";
}

#[test]
fn the_engine_of_this_machine_may_hold_images() {
    let mut pay = function("pay");
    pay.image.reference = "epsilon/shop/pay:1".into();
    assert!(checked(document(vec![pay]), &[], &Ceilings::default(), true).is_ok());
}

#[test]
fn a_document_has_unique_functions_within_the_limit() {
    let check = |names: &[&str], only: &[&str]| {
        let functions = names.iter().map(|text| function(text)).collect();
        let only: Vec<_> = only.iter().map(|text| name(text)).collect();
        let ceilings = Ceilings { max_functions: 3, ..Ceilings::default() };
        let checked = checked(document(functions), &only, &ceilings, false);
        checked.map(|built| {
            built.functions.iter().map(|one| one.name.to_string()).collect::<Vec<_>>().join(" ")
        })
    };
    for (names, only, want) in [
        (&["b", "a"][..], &[][..], Ok("a b")),
        (&["a", "b"], &["b"], Ok("b")),
        (&[], &[], Err("it names no functions")),
        (&["a", "a"], &[], Err("it names `a` twice")),
        (&["a", "b", "c", "d"], &[], Err("it names 4 functions; the operator's ceiling is 3")),
        (&["checkout"], &["chekout"], Err("it does not name `chekout`; it names `checkout`")),
    ] {
        let got = check(names, only).map_err(|err| err.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), want, "{names:?} {only:?}");
    }
}
